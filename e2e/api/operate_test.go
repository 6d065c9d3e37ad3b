package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// plugin runs `kubectl pinhole` in the cluster with claims.
func (c clerk) plugin(arguments ...string) lab.Result {
	c.t.Helper()
	result, err := c.cluster.Kubectl("", append([]string{"pinhole"}, arguments...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return result
}

// says holds a result against its exit code and parts of what it says.
func (c clerk) says(result lab.Result, code int, parts ...string) {
	c.t.Helper()
	if result.Code != code {
		c.t.Errorf("exit code %d, expected %d\n%s%s", result.Code, code, result.Stdout, result.Stderr)
	}
	for _, part := range parts {
		if !strings.Contains(result.Stdout+result.Stderr, part) {
			c.t.Errorf("expected %q in\n%s%s", part, result.Stdout, result.Stderr)
		}
	}
}

func TestAnOperatorPausesNodesAndLetsThemGoOn(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "works")
	const path = "/apis/pinhole.dev/v1alpha1/natnodes"
	node := object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": object{"name": "works-1"}, "spec": object{}}
	c.must(http.MethodPost, path, node, nil)
	t.Cleanup(func() { c.must(http.MethodDelete, path+"/works-1", nil, nil) })
	spec := func() (found struct {
		Spec struct {
			Paused bool
			Resume string
		}
	}) {
		c.must(http.MethodGet, path+"/works-1", nil, &found)
		return found
	}

	c.says(c.plugin("pause", "--node=works-1"), 0, "works-1: paused: nothing in its kernel is changed until kubectl pinhole resume")
	if !spec().Spec.Paused {
		t.Error("spec.paused is false")
	}
	c.says(c.plugin("pause", "--node=works-1"), 0, "works-1: was paused already")
	c.says(c.plugin("pause", "--node=works-1,nowhere"), 2, "there is no NatNode nowhere; kubectl get natnodes lists them")

	c.must(http.MethodPatch, path+"/works-1/status", object{"status": object{"brake": "2026-03-01T10:00:00Z"}}, nil)
	c.says(c.plugin("resume", "--node=works-1"), 0, "works-1: resumed, and what its brake holds back is removed")
	if found := spec(); found.Spec.Paused || found.Spec.Resume != "2026-03-01T10:00:00Z" {
		t.Errorf("%+v", found)
	}
	c.says(c.plugin("resume", "--node=works-1"), 0, "works-1: was not paused, and its brake holds nothing back")
}

func TestAnOperatorReleasesAClaimThatIsStuckAndNoneThatIsInUse(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "stuck")
	c.says(c.plugin("release", "192.0.2.77:25", "--yes"), 2, "nobody has claimed 192.0.2.77:25/tcp")
	c.grants("mx", "192.0.2.77:25")
	c.says(c.plugin("release", "192.0.2.77:25", "--yes"), 1,
		"v4-192-0-2-77-tcp-25: ", "held by Pod stuck/mx, pool documentation", "Pod stuck/mx asks for it, so it would be claimed again at once")
	if len(c.claims("192.0.2.77")) != 1 {
		t.Error("a claim in use was released")
	}
	c.must(http.MethodDelete, c.podsPath()+"/mx", object{"gracePeriodSeconds": 0}, nil)
	// Until the controller gives it back, two minutes later, nobody else has it.
	c.refuses("next", "192.0.2.77:25", "Pod stuck/mx")
	c.says(c.plugin("release", "192.0.2.77:25"), 1, "nobody can be asked here, and nothing was done; say so with --yes")
	c.says(c.plugin("release", "192.0.2.77:25", "--yes"), 0, "192.0.2.77:25/tcp is free")
	c.grants("next", "192.0.2.77:25")
}

func TestAnOperatorReleasesNoPortThatWasFoundForAPodOrIsKeptForTheNextOne(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "found-kept")
	c.must(http.MethodPost, poolsPath, natPool("found-kept", object{
		"addresses": []string{"198.51.100.48"}, "ports": []object{{"first": 32000, "last": 32099}}, "namespaces": object{"names": []string{"found-kept"}},
	}), nil)
	has := func(pod object) string {
		t.Helper()
		if code, said := c.create("", pod); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
		told := c.letGo(pod["metadata"].(object)["name"].(string)).told(t)
		return fmt.Sprintf("%s:%d", told[0].Address, told[0].Port)
	}
	ends := func(pod string) {
		t.Helper()
		c.must(http.MethodDelete, c.podsPath()+"/"+pod, object{"gracePeriodSeconds": 0}, nil)
	}

	game := has(fromPool("game", "auto:9000", "found-kept"))
	c.says(c.plugin("release", game, "--yes"), 1, "held by Pod found-kept/game, pool found-kept", "Pod found-kept/game asks for it, so it would be claimed again at once")
	c.applied(workload("StatefulSet", "lobby", expose("fixed:7777")))
	member := fromPool("lobby-0", "fixed:7777", "found-kept")
	member["metadata"].(object)["ownerReferences"] = []object{{
		"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "lobby", "uid": "d1b2f3a4-0000-4000-8000-000000000000", "controller": true,
	}}
	lobby := has(member)
	c.says(c.plugin("release", lobby, "--yes"), 1, "Pod found-kept/lobby-0 asks for it, so it would be claimed again at once")
	ends("lobby-0")
	c.says(c.plugin("release", lobby, "--yes"), 1, "StatefulSet found-kept/lobby asks for it", "take the port out of the annotation of its template")
	ends("game")
	if claims := c.claims("198.51.100.48"); len(claims) != 2 {
		t.Errorf("one of the claims was released: %v", claims)
	}
	// The controller may note at the same moment that the pod is gone.
	if err := lab.Poll(patience, func() error {
		if result := c.plugin("release", game, "--yes"); result.Code != 0 || !strings.Contains(result.Stdout, game+"/tcp is free") {
			return errors.New(result.Stdout + result.Stderr)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestTheHistoryTellsWhoHeldAPortAfterItsClaimIsGone(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "annals")
	c.says(c.plugin("history", "192.0.2.79:25"), 1, "nobody is known to have had 192.0.2.79:25/tcp")
	c.grants("mx", "192.0.2.79:25")
	type stretch struct {
		Claim, From, Pod, Node string
		Until                  *string
		Holder                 struct{ Kind, Namespace, Name string }
	}
	awaits := func(what string, holds func(stretch) bool) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			var told struct{ Items []stretch }
			result := c.plugin("history", "192.0.2.79:25", "-o", "json")
			if err := json.Unmarshal([]byte(result.Stdout), &told); err != nil {
				return fmt.Errorf("%w: %s%s", err, result.Stdout, result.Stderr)
			}
			// Released a moment before the controller knew that the pod is gone, it was claimed once more.
			doesNotHold := func(item stretch) bool { return !holds(item) }
			if len(told.Items) == 0 || slices.ContainsFunc(told.Items, doesNotHold) {
				return fmt.Errorf("%s: %+v", what, told.Items)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	awaits("it is held", func(s stretch) bool {
		return s.Until == nil && s.Pod == "mx" && s.Holder.Kind == "Pod" && s.Holder.Namespace == "annals" && s.Claim == "v4-192-0-2-79-tcp-25"
	})
	c.must(http.MethodDelete, c.podsPath()+"/mx", object{"gracePeriodSeconds": 0}, nil)
	if err := lab.Poll(patience, func() error {
		if result := c.plugin("release", "192.0.2.79:25", "--yes"); result.Code != 0 {
			return errors.New(result.Stderr)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	awaits("it was held", func(s stretch) bool {
		return s.Until != nil && s.Holder.Kind == "Pod" && s.Holder.Namespace == "annals" && s.Holder.Name == "mx"
	})
	c.says(c.plugin("history", "192.0.2.79:25"), 0, "HOLDER", "Pod annals/mx")
}

func TestAPortIsHandedOverAndServedByTheOldHolderUntilTheNewOneIsReady(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "handover")
	const port, name = "192.0.2.79:443", "v4-192-0-2-79-tcp-443"
	set := func(name string) string { return workload("StatefulSet", name, expose(port)) }
	pod := func(name, set string) {
		t.Helper()
		pod := asking(name, port)
		pod["metadata"].(object)["ownerReferences"] = []object{{
			"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": "d1b2f3a4-0000-4000-8000-000000000000", "controller": true,
		}}
		pod["spec"].(object)["nodeName"] = "node-7"
		if code, said := c.create("", pod); code != http.StatusCreated {
			t.Fatalf("%s: HTTP %d: %s", name, code, said)
		}
	}
	holders := func(expected string) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			spec := c.claims("192.0.2.79")[name].Spec
			if found := spec.Holder.Name + " " + spec.PreviousHolder.Name; found != expected {
				return fmt.Errorf("the claim is of %q, expected %q", found, expected)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	transfer := func(arguments ...string) lab.Result {
		return c.plugin(append([]string{"transfer", "-n", c.namespace}, arguments...)...)
	}

	c.applied(set("blue"))
	pod("blue-0", "blue")
	c.eventuallyShown("blue-0", "blue-0 192.0.2.79:443/tcp Pod blue-0 node-7 StatefulSet blue Unknown Waiting")
	c.refused(set("green"), "or have it handed over (kubectl pinhole transfer statefulset/blue --to statefulset/green)")

	c.says(transfer("sts/none", "--to", "sts/green"), 2, "there is no StatefulSet handover/none")
	c.says(transfer("sts/blue", "--to", "sts/green", "--dry-run"), 0, "192.0.2.79:443/tcp", "would be annotated")
	c.refused(set("green"), "held by StatefulSet handover/blue")
	c.says(transfer(port, "--to", "sts/green"), 0, "StatefulSet handover/blue hands over to StatefulSet handover/green", "Annotated.")
	c.refused(set("red"), "held by StatefulSet handover/blue")
	holders("blue ")
	c.applied(set("green"))
	holders("green blue")

	// Its pods go on, and may be made anew, until one of the new holder is ready.
	c.eventuallyShown("blue-0", "node-7 StatefulSet green Unknown Waiting")
	pod("blue-1", "blue")
	pod("green-0", "green")
	c.eventuallyShown("green-0", "node-7 StatefulSet green Unknown Waiting")
	c.eventuallyShown("blue-1", "node-7 StatefulSet green Unknown Waiting")
	c.must(http.MethodPatch, c.podsPath()+"/green-0/status", object{"status": object{"phase": "Running",
		"conditions": []object{{"type": "ContainersReady", "status": "True"}}}}, nil)
	c.eventuallyShown("blue-0", "node-7 StatefulSet blue False PortTaken")
	c.eventuallyShown("green-0", "node-7 StatefulSet green Unknown Waiting")
	c.refused(set("red"), "held by StatefulSet handover/")

	c.says(transfer("sts/green", "--to", "sts/blue"), 0, "StatefulSet handover/blue had handed its own over to StatefulSet handover/green; that ends.")
	holders("blue green")
	c.eventuallyShown("green-0", "node-7 StatefulSet blue Unknown Waiting")
}
