package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// How long no webhook answers. After it the controllers of workloads would by themselves not try again for over a minute: their
// pauses double from 5 ms, so they try 82 and 164 seconds after the first refusal.
const outage = 90 * time.Second

func TestWorkloadsAreWokenWhenTheWebhookIsBack(t *testing.T) {
	t.Parallel()
	registry, err := startRegistry(lab.Options{
		Name: "waking", Network: 7, APIServers: 1, Controllers: true,
		BeforeWebhook: "{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {kubernetes.io/hostname: node-1}}}",
	}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	d := desk{t, &officeCluster{Cluster: registry.Cluster}, "default"}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(registry.controllers[0].LogTail())
		}
	})
	d.accepted(workload("Deployment", "web", expose("192.0.2.90:80"), "replicas: 0"))
	d.accepted(workload("StatefulSet", "db", expose("192.0.2.90:81"), "replicas: 0"))
	d.accepted(strings.Replace(workload("DaemonSet", "edge", expose("192.0.2.90:82")),
		"spec: {restartPolicy", "spec: {nodeSelector: {edge: \"yes\"}, restartPolicy", 1))

	if err := registry.StopReplicas(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d.succeeds("", "scale", "deployment/web", "statefulset/db", "--replicas=1")
	d.succeeds("", "label", "node", "node-1", "edge=yes")
	d.eventually(func() error {
		said := d.kubectl("", "get", "events", "--field-selector=reason=FailedCreate").Stdout
		for _, kind := range []string{"replicaset/web-", "statefulset/db", "daemonset/edge"} {
			if !strings.Contains(said, kind) {
				return fmt.Errorf("%s was not refused a pod:\n%s", kind, said)
			}
		}
		return nil
	})
	time.Sleep(time.Until(began.Add(outage)))
	if pods := d.pods(); len(pods) != 0 {
		t.Fatalf("pods were made without the webhook: %v", pods)
	}

	if _, err := registry.StartReadyReplica("--claims"); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	if err := lab.Poll(patience, func() error {
		if pods := d.pods(); len(pods) != 3 {
			return fmt.Errorf("%d pods: %v", len(pods), pods)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("all have pods %v after the webhook was back", time.Since(back))
	for _, plural := range []string{"replicasets", "statefulsets", "daemonsets"} {
		var list struct {
			Items []struct {
				Metadata struct {
					Name        string
					Generation  int
					Annotations map[string]string
				}
			}
		}
		path := "/apis/apps/v1/namespaces/default/" + plural
		if err := registry.Do(context.Background(), 0, http.MethodGet, path, nil, &list); err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			woken, err := time.Parse(time.RFC3339, item.Metadata.Annotations["pinhole.dev/woken"])
			if err != nil || woken.Before(back.Truncate(time.Second)) {
				t.Errorf("%s %s was last woken %v, and the webhook was back %v (%v)", plural, item.Metadata.Name, woken, back, err)
			}
		}
	}
	// They have their pods, and are left alone.
	count := func() string {
		text, err := registry.controllers[0].Metrics()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, `pinhole_controller_changes_total{change="Woken"}`) {
				return line
			}
		}
		return ""
	}
	before := count()
	time.Sleep(25 * time.Second)
	if after := count(); before == "" || after != before {
		t.Errorf("workloads that have their pods are woken: %q, then %q", before, after)
	}
}
