package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// The pods of a StatefulSet-like holder run on other nodes than the one that has their address.
func TestAnAgentServesPodsOfOtherNodesAtTheAddressThatItsNodeHas(t *testing.T) {
	c := newClerk(t, "gateway")
	t.Cleanup(func() { c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/natnodes/node-1", nil, nil) })
	agent := c.startAgent("192.0.2.95", "--nat-node")
	entries := func(expected string) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			entries, err := agent.Entries()
			if err == nil && (!strings.Contains(entries, expected) || expected == "" && strings.Contains(entries, "192.0.2.95")) {
				err = fmt.Errorf("the kernel has %s, expected %q\n%s\n%s", entries, expected, c.shown("mx-0"), c.shown("mx-1"))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	place := func(name, node string) {
		t.Helper()
		pod := asking(name, "192.0.2.95:2525:25")
		pod["metadata"].(object)["ownerReferences"] = []object{{"apiVersion": "example.com/v1", "kind": "Fleet", "name": "mx",
			"uid": "6ab5e84e-2a5a-4d3c-8d0a-4f0f5a6f0a02", "controller": true}}
		pod["spec"].(object)["nodeName"] = node
		if code, said := c.create("", pod); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
	}
	// The controller learns from the NatNode who has the address.
	if said, known := c.kubectl("", "wait", "--for=jsonpath={.status.addresses[?(@.address==\"192.0.2.95\")].address}=192.0.2.95",
		"natnode/node-1", "--timeout=30s"); !known {
		t.Fatal(said)
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

	// The port is kept until the node that served it has let go, whatever became of the pods' own.
	c.pause(true)
	for _, name := range []string{"mx-0", "mx-1"} {
		c.must(http.MethodDelete, c.podsPath()+"/"+name, object{"gracePeriodSeconds": 0}, nil)
		c.eventuallyShown(name, "False Releasing")
	}
	if _, claimed := c.claims("192.0.2.95")["v4-192-0-2-95-tcp-2525"]; !claimed {
		t.Error("the claim is gone although the kernel has the port")
	}
	entries("192.0.2.95")
	c.pause(false)
	entries("")
	c.eventuallyShown("mx-1", "NotFound")
}
