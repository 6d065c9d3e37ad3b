package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// startGateway starts an agent of node-1 that has this address, and returns once the controller can know that.
func (c clerk) startGateway(address string, arguments ...string) *lab.Agent {
	c.t.Helper()
	c.t.Cleanup(func() { c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/natnodes/node-1", nil, nil) })
	agent := c.startAgent(address, append(arguments, "--nat-node")...)
	if err := lab.Poll(patience, func() error {
		said, _ := c.kubectl("", "get", "natnode", "node-1", "-o", "jsonpath={.status.addresses[*].address}")
		if !slices.Contains(strings.Fields(said), address) {
			return fmt.Errorf("the NatNode has the addresses %s", said)
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	return agent
}

// ofFleet creates a pod of a holder whose pods are on several nodes.
func (c clerk) ofFleet(name, fleet, node string, annotations notes) {
	c.t.Helper()
	pod := asking(name, "")
	pod["metadata"].(object)["annotations"] = annotations
	pod["metadata"].(object)["ownerReferences"] = []object{{"apiVersion": "example.com/v1", "kind": "Fleet", "name": fleet,
		"uid": "6ab5e84e-2a5a-4d3c-8d0a-4f0f5a6f0a02", "controller": true}}
	pod["spec"].(object)["nodeName"] = node
	if code, said := c.create("", pod); code != http.StatusCreated {
		c.t.Fatalf("HTTP %d: %s", code, said)
	}
}

// eventuallyHas waits until the entries of an agent's kernel are such.
func (c clerk) eventuallyHas(agent *lab.Agent, expected func(entries string) bool) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		entries, err := agent.Entries()
		if err == nil && !expected(entries) {
			shown, _ := c.kubectl("", "get", "ph")
			err = fmt.Errorf("the kernel has %s\n%s", entries, shown)
		}
		return err
	}); err != nil {
		c.t.Fatal(err)
	}
}

// The pods of a StatefulSet-like holder run on other nodes than the one that has their address.
func TestAnAgentServesPodsOfOtherNodesAtTheAddressThatItsNodeHas(t *testing.T) {
	c := newClerk(t, "gateway")
	agent := c.startGateway("192.0.2.95")
	entries := func(expected string) {
		t.Helper()
		c.eventuallyHas(agent, func(entries string) bool {
			return strings.Contains(entries, expected) && (expected != "" || !strings.Contains(entries, "192.0.2.95"))
		})
	}
	place := func(name, node string) {
		t.Helper()
		c.ofFleet(name, "mx", node, notes{"pinhole.dev/expose": "192.0.2.95:2525:25"})
	}
	place("mx-0", "node-2")
	c.eventuallyShown("mx-0", "mx-0 192.0.2.95:2525/tcp Pod mx-0 node-1 Fleet mx False NoAddress")
	c.kubelet("mx-0", "10.244.2.9", "True")
	if said, programmed := c.kubectl("", "wait", "--for=condition=Programmed", "ph/mx-0", "--timeout=30s"); !programmed {
		t.Fatalf("%s\n%s", said, c.shown("mx-0"))
	}
	c.eventuallyShown("mx-0", "mx-0 192.0.2.95:2525/tcp 10.244.2.9:25 node-1 Fleet mx True Programmed")
	entries("10.244.2.9")
	if said, _ := c.kubectl("", "get", "ph", "mx-0", "-o", "jsonpath={.metadata.labels}{.status.endpoints[0].nodes}"); said !=
		`{"app.kubernetes.io/managed-by":"pinhole-controller","node.pinhole.dev/node-1":""}["node-1"]` {
		t.Errorf("it has %s", said)
	}

	// A newer pod, on yet another node, takes over when it is ready, and not before.
	place("mx-1", "node-3")
	c.kubelet("mx-1", "10.244.3.9", "False")
	c.eventuallyShown("mx-1", "mx-1 192.0.2.95:2525/tcp 10.244.3.9:25 node-1 Fleet mx False NotReady")
	entries("10.244.2.9")
	c.kubelet("mx-1", "10.244.3.9", "True")
	entries("10.244.3.9")
	c.eventuallyShown("mx-1", "node-1 Fleet mx True Programmed")
	c.eventuallyShown("mx-0", "node-1 Fleet mx False Standby")

	// A suspended one leaves it to one that is not; with none left the port is closed and kept.
	suspend := func(name, change string) {
		t.Helper()
		if said, allowed := c.kubectl("", "annotate", "pod", name, "pinhole.dev/suspended"+change); !allowed {
			t.Fatal(said)
		}
	}
	suspend("mx-1", "=true")
	entries("10.244.2.9")
	c.eventuallyShown("mx-1", "node-1 Fleet mx False Suspended")
	suspend("mx-0", "=true")
	c.eventuallyHas(agent, func(entries string) bool {
		return strings.Contains(entries, "192.0.2.95") && !strings.Contains(entries, "10.244.")
	})
	suspend("mx-1", "-")
	suspend("mx-0", "-")
	entries("10.244.3.9")
	c.eventuallyShown("mx-1", "node-1 Fleet mx True Programmed")
	c.eventuallyShown("mx-0", "node-1 Fleet mx False Standby")

	// The port is kept until the node that served it has let go, whatever became of the pods' own.
	c.pause(true)
	for _, each := range []struct{ name, shown string }{{"mx-0", "NotFound"}, {"mx-1", "False Releasing"}} {
		c.must(http.MethodDelete, c.podsPath()+"/"+each.name, object{"gracePeriodSeconds": 0}, nil)
		c.eventuallyShown(each.name, each.shown)
	}
	if _, claimed := c.claims("192.0.2.95")["v4-192-0-2-95-tcp-2525"]; !claimed {
		t.Error("the claim is gone although the kernel has the port")
	}
	entries("192.0.2.95")
	c.pause(false)
	entries("")
	c.eventuallyShown("mx-1", "NotFound")
}

// How a port is handed over, a pod says in its annotations, and the gateway hears it from the pod's Pinhole.
func TestAGatewayHandsOverWhenThePodsSayThatItIsTime(t *testing.T) {
	c := newClerk(t, "handed-on")
	agent := c.startGateway("192.0.2.94")
	leadsTo := func(address string) {
		t.Helper()
		c.eventuallyHas(agent, func(entries string) bool { return strings.Contains(entries, address) })
	}
	place := func(name, fleet, node, port, handover string) {
		t.Helper()
		c.ofFleet(name, fleet, node, notes{"pinhole.dev/expose": "192.0.2.94:" + port, "pinhole.dev/handover": handover})
	}

	place("stays-0", "stays", "node-2", "2601", "WhenGone")
	c.kubelet("stays-0", "10.244.2.21", "True")
	leadsTo("10.244.2.21")
	place("stays-1", "stays", "node-3", "2601", "WhenGone")
	c.kubelet("stays-1", "10.244.3.21", "True")
	c.eventuallyShown("stays-1", "node-1 Fleet stays False Standby")
	c.kubelet("stays-0", "10.244.2.21", "False")
	c.eventuallyShown("stays-0", "node-1 Fleet stays True Programmed")
	leadsTo("10.244.2.21")
	c.must(http.MethodDelete, c.podsPath()+"/stays-0", object{"gracePeriodSeconds": 0}, nil)
	leadsTo("10.244.3.21")
	c.eventuallyShown("stays-1", "node-1 Fleet stays True Programmed")

	place("hurries-0", "hurries", "node-2", "2602", "Immediate")
	c.kubelet("hurries-0", "10.244.2.22", "True")
	leadsTo("10.244.2.22")
	place("hurries-1", "hurries", "node-3", "2602", "Immediate")
	c.kubelet("hurries-1", "10.244.3.22", "False")
	leadsTo("10.244.3.22")
	c.eventuallyShown("hurries-1", "node-1 Fleet hurries True Programmed")

	c.ofFleet("alone", "alone", "node-2", notes{"pinhole.dev/expose": "192.0.2.94:2603", "pinhole.dev/sharing": "Exclusive"})
	c.eventuallyShown("alone", "Fleet alone False NoAddress")
	if said, _ := c.kubectl("", "get", "ph", "alone", "-o", "jsonpath={.spec.sharing}"); said != "Exclusive" {
		t.Errorf("its Pinhole has sharing: %s", said)
	}
}

func TestAGatewayServesEachOfTheManyPortsOfAPod(t *testing.T) {
	const first, count = 26000, 100
	c := newClerk(t, "many")
	// It may let go of all of them at once.
	agent := c.startGateway("192.0.2.93", "--brake-threshold=100")
	var ports []string
	for number := range count {
		ports = append(ports, fmt.Sprintf("192.0.2.93:%d:80", first+number))
	}
	c.ofFleet("many-0", "many", "node-2", notes{"pinhole.dev/expose": strings.Join(ports, ",")})
	c.kubelet("many-0", "10.244.2.31", "True")
	c.eventuallyShown("many-0", "many-0 192.0.2.93:26000/tcp +99 10.244.2.31:80 node-1 Fleet many True Programmed")
	entries, err := agent.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for number := range count {
		if !strings.Contains(entries, fmt.Sprintf(`"%d"`, first+number)) {
			t.Errorf("port %d is not in the kernel: %s", first+number, entries)
		}
	}
	c.must(http.MethodDelete, c.podsPath()+"/many-0", object{"gracePeriodSeconds": 0}, nil)
	c.eventuallyShown("many-0", "NotFound")
}
