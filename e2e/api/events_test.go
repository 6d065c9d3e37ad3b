package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// deployed makes a Deployment and its ReplicaSet, as its controller would, and returns what its pods name as their owner.
func (c clerk) deployed(name string, annotations notes) object {
	c.t.Helper()
	labels := notes{"app": name}
	stored := func(plural, kind string, owner ...object) object {
		path := "/apis/apps/v1/namespaces/" + c.namespace + "/" + plural
		workload := object{
			"apiVersion": "apps/v1", "kind": kind, "metadata": object{"name": name, "ownerReferences": owner},
			"spec": object{
				"replicas": 0, "selector": object{"matchLabels": labels},
				"template": object{
					"metadata": object{"labels": labels, "annotations": annotations},
					"spec":     object{"containers": []object{{"name": "main", "image": "example.com/app:1"}}},
				},
			},
		}
		var made struct{ Metadata struct{ UID string } }
		c.must(http.MethodPost, path, workload, &made)
		c.t.Cleanup(func() { c.must(http.MethodDelete, path+"/"+name, nil, nil) })
		return object{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": made.Metadata.UID, "controller": true}
	}
	return stored("replicasets", "ReplicaSet", stored("deployments", "Deployment"))
}

// ownedBy is a pod that is managed by this owner.
func ownedBy(owner, pod object) object {
	pod["metadata"].(object)["ownerReferences"] = []object{owner}
	return pod
}

// said are the texts of the Events of a reason by what they are about, as Deployment/web.
func (c clerk) said(reason string) map[string][]string {
	c.t.Helper()
	var list struct {
		Items []struct {
			Note      string
			Regarding struct{ Kind, Name string }
		}
	}
	c.must(http.MethodGet, "/apis/events.k8s.io/v1/namespaces/"+c.namespace+"/events?fieldSelector=reason%3D"+reason, nil, &list)
	said := map[string][]string{}
	for _, event := range list.Items {
		about := event.Regarding.Kind + "/" + event.Regarding.Name
		said[about] = append(said[about], event.Note)
	}
	return said
}

// eventuallySaid waits until there is an Event of this reason about each of these, and returns all when there was time for more: the
// controller looks again after five seconds at most.
func (c clerk) eventuallySaid(reason string, about ...string) map[string][]string {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		said := c.said(reason)
		for _, object := range about {
			if len(said[object]) == 0 {
				return fmt.Errorf("no %s of %s: %v", reason, object, said)
			}
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(7 * time.Second)
	return c.said(reason)
}

// Beside no other test: what is said names all pools that the namespace may use, and a controller that takes over has said nothing.
func TestTheOwnerOfManyPodsHearsOnceThatNoPortIsFree(t *testing.T) {
	c := newClerk(t, "crowd")
	c.must(http.MethodPost, poolsPath, natPool("crowd", object{
		"addresses": []string{"198.51.100.49"}, "ports": []object{{"first": 30000, "last": 30000}},
		"namespaces": object{"names": []string{"crowd"}},
	}), nil)
	owner := c.deployed("lobby", notes{"pinhole.dev/expose": "auto:80", "pinhole.dev/pool": "crowd"})
	c.create("", ownedBy(owner, fromPool("lobby-0", "auto:80", "crowd")))
	c.letGo("lobby-0")
	var waiting []string
	for number := range 4 {
		name := fmt.Sprintf("lobby-%d", number+1)
		c.create("", ownedBy(owner, fromPool(name, "auto:80", "crowd")))
		waiting = append(waiting, "Pod/"+name)
	}
	said := c.eventuallySaid("NoFreePort", append(waiting, "Deployment/lobby")...)
	for about, notes := range said {
		if len(notes) != 1 || !strings.Contains(notes[0], "auto:80/tcp: waits for 1 free port on one address: no address of NatPool crowd has a free port; give") {
			t.Errorf("%s hears %q", about, notes)
		}
	}
	if len(said) != 5 {
		t.Errorf("told were %v", said)
	}
	if shown, _ := c.kubectl("", "describe", "deployment", "lobby"); !strings.Contains(shown, "NoFreePort") {
		t.Errorf("kubectl describe shows\n%s", shown)
	}
}

func TestAnOwnerThatWentPastTheWebhookHearsWhoHasItsPort(t *testing.T) {
	t.Parallel()
	// Of this namespace the webhook is not asked.
	c := clerk{t, newClerk(t, "bypass").cluster, "kube-system"}
	ports := notes{"pinhole.dev/expose": "192.0.2.93:443"}
	c.deployed("first-of-two", ports)
	if err := lab.Poll(patience, func() error {
		if claim := c.claims("192.0.2.93")["v4-192-0-2-93-tcp-443"]; claim.Spec.State != "Bound" {
			return fmt.Errorf("the claim is %+v", claim)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	owner := c.deployed("second-of-two", ports)
	// Pods without a node: no agent can tell them.
	for _, name := range []string{"second-0", "second-1"} {
		c.must(http.MethodPost, c.podsPath(), ownedBy(owner, asking(name, "192.0.2.93:443")), nil)
		t.Cleanup(func() { c.must(http.MethodDelete, c.podsPath()+"/"+name, object{"gracePeriodSeconds": 0}, nil) })
	}
	said := c.eventuallySaid("PortTaken", "Deployment/second-of-two", "Pod/second-0", "Pod/second-1")
	for about, notes := range said {
		if len(notes) != 1 || !strings.Contains(notes[0], "192.0.2.93:443/tcp: is claimed by Deployment kube-system/first-of-two (PortClaim ") {
			t.Errorf("%s hears %q", about, notes)
		}
	}
	if len(said) != 3 {
		t.Errorf("told were %v", said)
	}
	const advice = "choose another external port, remove it there first, or have it handed over (kubectl pinhole transfer " +
		"deployment/first-of-two --to deployment/second-of-two)"
	if notes := said["Deployment/second-of-two"]; !strings.HasSuffix(notes[0], advice) {
		t.Errorf("%q gives no advice", notes[0])
	}
	if shown, _ := c.kubectl("", "describe", "deployment", "second-of-two"); !strings.Contains(shown, "PortTaken") {
		t.Errorf("kubectl describe shows\n%s", shown)
	}
}
