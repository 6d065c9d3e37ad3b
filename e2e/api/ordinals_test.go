package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// ordered is a StatefulSet whose pods each have a port by their ordinal.
func ordered(name, ports string, replicas int) object {
	labels := object{"app": name}
	return object{
		"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": object{"name": name},
		"spec": object{
			"replicas": replicas, "serviceName": name, "selector": object{"matchLabels": labels},
			"template": object{
				"metadata": object{"labels": labels, "annotations": notes{"pinhole.dev/expose": ports}},
				"spec":     asking(name, "")["spec"],
			},
		},
	}
}

func TestEachPodOfAStatefulSetHasThePortOfItsOrdinal(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "worlds")
	const ports, prefix = "192.0.2.101:30000+{ordinal}:25565", "v4-192-0-2-101-tcp-"
	sets := "/apis/apps/v1/namespaces/worlds/statefulsets"
	claimed := func() []string {
		var numbers []string
		for name := range c.claims("192.0.2.101") {
			numbers = append(numbers, strings.TrimPrefix(name, prefix))
		}
		slices.Sort(numbers)
		return numbers
	}
	var stored struct{ Metadata struct{ UID string } }
	c.must(http.MethodPost, sets, ordered("world", ports, 2), &stored)
	if numbers := claimed(); !slices.Equal(numbers, []string{"30000", "30001"}) {
		t.Fatalf("of two replicas are claimed %v", numbers)
	}
	if code, said := c.create("", asking("other", "192.0.2.101:30003:80")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}

	resized := func(replicas int) (int, string) {
		var status *lab.StatusError
		err := c.cluster.Do(context.Background(), 0, http.MethodPatch, sets+"/world", object{"spec": object{"replicas": replicas}}, nil)
		if errors.As(err, &status) {
			return status.Code, status.Message
		}
		if err != nil {
			t.Fatal(err)
		}
		return http.StatusOK, ""
	}
	code, said := resized(5)
	if want := "192.0.2.101:30003/tcp: is held by Pod worlds/other"; code != http.StatusUnprocessableEntity || !strings.Contains(said, want) {
		t.Errorf("HTTP %d, and not %q: %s", code, want, said)
	}
	c.must(http.MethodPatch, sets+"/world", object{"spec": object{"replicas": 3}}, nil)
	if numbers := claimed(); !slices.Equal(numbers, []string{"30000", "30001", "30002", "30003"}) {
		t.Errorf("of three replicas and another pod are claimed %v", numbers)
	}

	// Nobody is asked about the subresource, so the pod is refused.
	c.must(http.MethodPatch, sets+"/world/scale", object{"spec": object{"replicas": 4}}, nil)
	member := func(name string) object {
		pod := asking(name, ports)
		pod["metadata"].(object)["ownerReferences"] = []object{{
			"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "world", "uid": stored.Metadata.UID, "controller": true,
		}}
		return pod
	}
	if code, said := c.create("", member("world-3")); code != http.StatusUnprocessableEntity || !strings.Contains(said, "30003/tcp") {
		t.Errorf("HTTP %d: %s", code, said)
	}
	if code, said := resized(2); code != http.StatusOK {
		t.Errorf("fewer replicas were refused: HTTP %d: %s", code, said)
	}

	if code, said := c.create("", member("world-1")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	annotations := c.gated("world-1").Metadata.Annotations
	if told := annotations[effective]; !strings.Contains(told, `"srcPort":30001,`) {
		t.Errorf("it is told %s", told)
	}
	if told := annotations[endpoints]; told != `[{"address":"192.0.2.101","protocol":"TCP","port":30001,"targetPort":25565}]` {
		t.Errorf("it is told %s", told)
	}
	c.eventuallyShown("world-1", "world-1 192.0.2.101:30001/tcp")
	if code, said := c.create("", asking("alone", ports)); code != http.StatusUnprocessableEntity || !strings.Contains(said, "goes by the pod's ordinal") {
		t.Errorf("HTTP %d: %s", code, said)
	}
}
