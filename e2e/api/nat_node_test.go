package api

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

type natNode struct {
	Metadata struct {
		Labels          map[string]string
		OwnerReferences []struct{ Kind, Name, UID string }
	}
	Spec   struct{ Paused bool }
	Status struct {
		Backend    string
		PortsInUse []struct {
			Protocol    string
			First, Last int
			Addresses   []string
		}
		Programmed struct{ Entries int }
		Links      []struct{ Interface, Gateway, Mark, Pool string }
		Conditions []struct{ Type, Status, Reason string }
	}
}

func (n natNode) is(condition, status string) bool {
	for _, each := range n.Status.Conditions {
		if each.Type == condition {
			return each.Status == status
		}
	}
	return false
}

// One after the other with the test of the agent, whose node is the same.
func TestAnAgentKeepsTheNatNodeOfItsNodeAndChangesNothingWhilePaused(t *testing.T) {
	c := newClerk(t, "nat-node")
	const nodePath, path = "/api/v1/nodes/node-1", "/apis/pinhole.dev/v1alpha1/natnodes/node-1"
	t.Cleanup(func() { c.must(http.MethodDelete, path, nil, nil) })
	if err := lab.AddNodeAddress("203.0.113.33"); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "203.0.113.33:2600")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	agent := c.startAgentOf(object{"metadata": object{"name": "node-1", "labels": notes{"zone": "a"}}}, "--nat-node")
	awaits := func(what string, holds func(natNode) bool) natNode {
		t.Helper()
		var found natNode
		err := lab.Poll(patience, func() error {
			found = natNode{}
			if err := c.cluster.Do(t.Context(), 0, http.MethodGet, path, nil, &found); err != nil {
				return err
			}
			if !holds(found) {
				return fmt.Errorf("%s: %+v", what, found)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}

	found := awaits("it says what the node is", func(n natNode) bool {
		listens := false
		for _, port := range n.Status.PortsInUse {
			listens = listens || port.Protocol == "TCP" && port.First <= 2600 && 2600 <= port.Last
		}
		return listens && n.is("Ready", "True") && n.is("Paused", "False") && n.Status.Backend != ""
	})
	if owners := found.Metadata.OwnerReferences; found.Metadata.Labels["zone"] != "a" || len(owners) != 1 || owners[0].Kind != "Node" {
		t.Errorf("the NatNode has not the labels of its Node, or does not go with it: %+v", found.Metadata)
	}

	// Somebody else's fields and somebody else's change.
	patch := func(path string, body object) {
		t.Helper()
		c.must(http.MethodPatch, path, body, nil)
	}
	patch(path, object{"spec": object{"paused": true}})
	awaits("it is paused", func(n natNode) bool { return n.Spec.Paused && n.is("Paused", "True") && n.is("Ready", "False") })
	c.placedAt("node-1", "smtp", "203.0.113.33:2525:25")
	c.runs("smtp", "10.244.1.9")
	time.Sleep(3 * time.Second)
	if entries, err := agent.Entries(); err != nil || entries != "[]" {
		t.Errorf("a paused agent has programmed %s %v", entries, err)
	}

	patch(path, object{"spec": object{"paused": false}})
	patch(nodePath, object{"metadata": object{"labels": notes{"zone": "b"}}})
	awaits("it is no longer paused, and follows the Node's labels", func(n natNode) bool {
		return n.is("Ready", "True") && n.Status.Programmed.Entries == 1 && n.Metadata.Labels["zone"] == "b"
	})

	c.must(http.MethodDelete, path, nil, nil)
	awaits("it comes back", func(n natNode) bool { return n.is("Ready", "True") })
	c.must(http.MethodDelete, c.podsPath()+"/smtp", object{"gracePeriodSeconds": 0}, nil)
	awaits("nothing is programmed", func(n natNode) bool { return n.Status.Programmed.Entries == 0 })
}

// What it says of a node decides where addresses are served and whose ports are taken.
func TestAnAgentKeepsTheNatNodeOfItsOwnNodeAlone(t *testing.T) {
	c := newClerk(t, "nat-nodes-own")
	const path, merge, apply = "/apis/pinhole.dev/v1alpha1/natnodes/", "application/merge-patch+json", "application/apply-patch+yaml"
	t.Cleanup(func() {
		for _, node := range []string{"own-1", "own-2", "own-3"} {
			c.must(http.MethodDelete, path+node, nil, nil)
		}
	})
	// asAgent has the agent of a node write the NatNode at a path; "" is a token that is of no pod.
	asAgent := func(node, contentType, at string, body object) (string, bool) {
		t.Helper()
		headers := map[string]string{"Impersonate-User": "system:serviceaccount:pinhole-system:pinhole-agent", "Content-Type": contentType}
		if node != "" {
			headers["Impersonate-Extra-authentication.kubernetes.io%2Fnode-name"] = node
		}
		err := c.cluster.DoWith(t.Context(), 0, headers, http.MethodPatch, path+at, body, nil)
		return fmt.Sprint(err), err == nil
	}
	named := func(name, part string, content object) object {
		return object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": object{"name": name}, part: content}
	}
	status := object{"backend": "nftables"}
	for _, as := range []struct{ node, writes string }{{"own-1", "own-1"}, {"own-2", "own-2"}, {"", "own-3"}, {"", "own-1"}} {
		for _, part := range []struct {
			subresource, name string
			content           object
		}{{"", "spec", object{}}, {"/status", "status", status}} {
			at := as.writes + part.subresource + "?force=true&fieldManager=pinhole-agent"
			if said, allowed := asAgent(as.node, apply, at, named(as.writes, part.name, part.content)); !allowed {
				t.Errorf("a token of %q writes %s: %s", as.node, at, said)
			}
		}
	}
	for what, attempt := range map[string]struct {
		contentType, at string
		body            object
	}{
		"another's status": {merge, "own-2/status", object{"status": status}},
		"another's pause":  {merge, "own-2", object{"spec": object{"paused": true}}},
		"another's labels": {merge, "own-2", object{"metadata": object{"labels": notes{"gateway": "true"}}}},
		"a new one":        {apply, "own-4?fieldManager=pinhole-agent", named("own-4", "spec", object{})},
	} {
		if said, allowed := asAgent("own-1", attempt.contentType, attempt.at, attempt.body); allowed || !strings.Contains(said, "keeps the NatNode of its own node alone") {
			t.Errorf("%s, by the agent of own-1: %s", what, said)
		}
	}
	if said, allowed := c.kubectl("", "patch", "natnode", "own-2", "--type=merge", "-p", `{"spec":{"paused":true}}`); !allowed {
		t.Errorf("an operator: %s", said)
	}
}

// One after the other with the other tests of agents, whose node is the same.
func TestAnAgentUsesTheLinksOfThePoolsThatSelectItsNodeWithoutARestart(t *testing.T) {
	c := newClerk(t, "links")
	const nodePath, path = "/api/v1/nodes/node-1", "/apis/pinhole.dev/v1alpha1/natnodes/node-1"
	t.Cleanup(func() { c.must(http.MethodDelete, path, nil, nil) })
	if err := lab.AddNodeAddress("192.0.2.88"); err != nil {
		t.Fatal(err)
	}
	pool := func(name, uplinks, interfaceName string) {
		t.Helper()
		c.must(http.MethodPost, poolsPath, natPool(name, object{
			"addresses": []string{"198.51.100.200"}, "nodes": object{"selector": object{"matchLabels": notes{"uplinks": uplinks}}},
			"links": []object{{"interface": interfaceName, "gateway": "192.0.2.1"}},
		}), nil)
	}
	pool("uplinks-a", "two", "uplink-a")
	pool("uplinks-b", "one", "uplink-b")
	c.startAgentOf(object{"metadata": object{"name": "node-1", "labels": notes{"uplinks": "two"}}}, "--nat-node", "--firewall=nftables", "--link=interface=uplink-f")
	c.placedAt("node-1", "smtp", "192.0.2.88:2526:25")
	c.runs("smtp", "10.244.1.9")
	uses := func(interfaces ...string) natNode {
		t.Helper()
		var found natNode
		err := lab.Poll(patience, func() error {
			found = natNode{}
			if err := c.cluster.Do(t.Context(), 0, http.MethodGet, path, nil, &found); err != nil {
				return err
			}
			var told []string
			for _, link := range found.Status.Links {
				told = append(told, link.Interface)
			}
			listed, err := exec.Command("nft", "list", "chain", "ip", "PINHOLE", "c_links").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, listed)
			}
			var made []string
			for _, rule := range strings.Split(string(listed), "\n") {
				if _, rest, arrives := strings.Cut(rule, "iifname \""); arrives {
					made = append(made, strings.Split(rest, "\"")[0])
				}
			}
			if !slices.Equal(told, interfaces) || !slices.Equal(made, interfaces) {
				return fmt.Errorf("the links should be %v; the NatNode tells %v, and the kernel has %v", interfaces, told, made)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := uses("uplink-f", "uplink-a")
	if link := found.Status.Links[1]; link.Pool != "uplinks-a" || link.Gateway != "192.0.2.1" || link.Mark != "0x20/0x70" {
		t.Errorf("the pool's link is told as %+v", link)
	}
	if !found.is("LinkUnusable", "True") {
		t.Errorf("an interface that does not exist is not told: %+v", found.Status.Conditions)
	}
	c.must(http.MethodPatch, nodePath, object{"metadata": object{"labels": notes{"uplinks": "one"}}}, nil)
	uses("uplink-f", "uplink-b")
	c.must(http.MethodDelete, poolsPath+"/uplinks-b", nil, nil)
	uses("uplink-f")

	c.must(http.MethodDelete, poolsPath+"/uplinks-a", nil, nil)
	c.must(http.MethodDelete, c.podsPath()+"/smtp", object{"gracePeriodSeconds": 0}, nil)
}
