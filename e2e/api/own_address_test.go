package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

const natNodesPath = "/apis/pinhole.dev/v1alpha1/natnodes"

// calls says in the NatNode of a node what its own address is.
func (c clerk) calls(node, address string) {
	c.t.Helper()
	c.must(http.MethodPatch, natNodesPath+"/"+node+"/status",
		object{"status": object{"addresses": []object{{"address": address, "own": true}}}}, nil)
}

// claimedBy waits until a claim is bound to a holder.
func (c clerk) claimedBy(holder, address, name string, patience time.Duration) (claim storedClaim) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		claim = c.claims(address)[name]
		if claim.Spec.State != "Bound" || claim.Spec.Holder.Name != holder {
			return fmt.Errorf("%s is %s for %q", name, claim.Spec.State, claim.Spec.Holder.Name)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
	return claim
}

func TestAPortOfANodesOwnAddressIsClaimedWhenThePodHasANode(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "own-address")
	pool := natPool("own-addresses", object{"nodeAddresses": true, "ports": everyPort, "priority": 10, "cooldownSeconds": 1,
		"namespaces": object{"names": []string{"own-address"}}})
	c.must(http.MethodPost, poolsPath, pool, nil)
	c.must(http.MethodPost, natNodesPath, object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode",
		"metadata": object{"name": "own-1"}, "spec": object{}}, nil)
	t.Cleanup(func() { c.must(http.MethodDelete, natNodesPath+"/own-1", nil, nil) })
	// As a scheduler does it: when a pod asks, nobody knows its node.
	comes := func(name string) {
		t.Helper()
		if code, said := c.create("", asking(name, "2586:25")); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
		c.must(http.MethodPost, c.podsPath()+"/"+name+"/binding", object{"apiVersion": "v1", "kind": "Binding",
			"metadata": object{"name": name}, "target": object{"kind": "Node", "name": "own-1"}}, nil)
	}
	const claim, moved = "v4-192-0-2-87-tcp-2586", "v4-192-0-2-89-tcp-2586"

	comes("first")
	c.eventuallyShown("first", "NatNode own-1 does not say yet what the own address of its node is")
	c.calls("own-1", "192.0.2.87")
	if pool := c.claimedBy("first", "192.0.2.87", claim, patience).Spec.Pool; pool != "own-addresses" {
		t.Errorf("the claim is of the pool %q", pool)
	}
	c.eventuallyShown("first", "first 2586/tcp Pod first own-1 Pod first Unknown Waiting")
	granted, _ := c.kubectl("", "get", "ph", "first", "-o", "jsonpath={.status.ownAddresses}{.status.endpoints[0].address}:{.status.endpoints[0].port}")
	if granted != `["192.0.2.87"]192.0.2.87:2586` {
		t.Errorf("the Pinhole grants %s", granted)
	}
	if told := c.gated("first").told(t); len(told) != 1 || told[0].Address != "192.0.2.87" {
		t.Errorf("the pod is told %v", told)
	}
	c.refuses("fixed", "192.0.2.87:2586", "192.0.2.87:2586/tcp: is claimed by Pod own-address/first (PortClaim "+claim)

	comes("second")
	c.eventuallyShown("second", "second 2586/tcp Pod second own-1 Pod second False PortTaken metadata.annotations[pinhole.dev/expose][0]: "+
		"2586/tcp: is claimed by Pod own-address/first (PortClaim "+claim)
	c.must(http.MethodDelete, c.podsPath()+"/first", object{"gracePeriodSeconds": 0}, nil)
	// What was made a moment ago is kept for two minutes.
	c.claimedBy("second", "192.0.2.87", claim, 4*time.Minute)
	c.eventuallyShown("second", "Unknown Waiting")

	c.calls("own-1", "192.0.2.89")
	c.claimedBy("second", "192.0.2.89", moved, patience)
	// Its node has no agent that could answer, so that it takes its time from here on.
	if err := lab.Poll(4*time.Minute, func() error {
		if now := c.claims("192.0.2.87")[claim].Spec; now.State != "Releasing" {
			return fmt.Errorf("the claim of the old address is %s", now.State)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// Beside no other test with an agent.
func TestAnAgentServesAPortOfItsNodesOwnAddressOnceItIsClaimed(t *testing.T) {
	c := newClerk(t, "own-served")
	agent := c.startAgent("192.0.2.92")
	c.placedAt("node-1", "own", "2592:25")
	c.eventuallyShown("own", "own 2592/tcp Pod own node-1 Pod own")
	c.runs("own", "10.244.1.9")
	if said, programmed := c.kubectl("", "wait", "--for=condition=Programmed", "ph/own", "--timeout=60s"); !programmed {
		t.Fatalf("%s\n%s", said, c.shown("own"))
	}
	address, _ := c.kubectl("", "get", "ph", "own", "-o", "jsonpath={.status.endpoints[0].address}")
	entries, err := agent.Entries()
	if err != nil || !strings.Contains(entries, "own-served/own") || !strings.Contains(entries, `"`+address+`"`) {
		t.Errorf("%s is granted, and the kernel has %s %v", address, entries, err)
	}
	if claims := c.claims(address); len(claims) == 0 {
		t.Errorf("nothing of %s is claimed", address)
	}
	// It would be served at the address of each node that an agent is tried on.
	c.must(http.MethodDelete, c.podsPath()+"/own", object{"gracePeriodSeconds": 0}, nil)
	c.eventuallyShown("own", "NotFound")
}
