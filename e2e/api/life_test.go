package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// Objects that the cluster had before it had the webhook: its nodes, and some that would be refused today.
var olderThanTheWebhook = `
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {kubernetes.io/hostname: node-1}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2, labels: {kubernetes.io/hostname: node-2}}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: older}
---
` + strings.Join([]string{
	inNamespace("older", pod("bad", expose("22"))),
	inNamespace("older", strings.Replace(pod("held", expose("22")), "metadata:\n", "metadata:\n  finalizers: [example.com/hold]\n", 1)),
	inNamespace("older", workload("Deployment", "bad", expose("22"), "replicas: 0")),
	inNamespace("older", workload("StatefulSet", "bad", expose("22"), "replicas: 0")),
	inNamespace("older", workload("CronJob", "bad", expose("22"))),
	// Left alone by the tests that change and delete the others.
	inNamespace("older", workload("Deployment", "untouched", expose("22"), "replicas: 0")),
}, "---\n")

func inNamespace(namespace, manifest string) string {
	block := strings.Replace(manifest, "metadata:\n", "metadata:\n  namespace: "+namespace+"\n", 1)
	return strings.Replace(block, "metadata: {name", "metadata: {namespace: "+namespace+", name", 1)
}

func TestWhatIsOlderThanTheWebhookCanBeLabelledScaledAndDeleted(t *testing.T) {
	d := newDesk(t, "older")
	d.succeeds("", "label", "pod", "bad", "team=mail")
	d.succeeds("", "annotate", "pod", "bad", "example.com/note=kept")
	d.succeeds("", "set", "image", "pod/bad", "main=example.com/app:2")
	d.reportStatus("bad", "Running")
	d.succeeds("", "scale", "deployment", "bad", "--replicas=1")
	d.succeeds("", "scale", "deployment", "bad", "--replicas=0")
	d.succeeds("", "scale", "statefulset", "bad", "--replicas=0")
	d.succeeds("", "set", "image", "deployment/bad", "main=example.com/app:2")
	d.succeeds("", "patch", "cronjob", "bad", "-p", `{"spec":{"suspend":true}}`)

	// What it asks for may not change into something that is refused, only become right or go away.
	said := d.fails("", "annotate", "--overwrite", "pod", "bad", "pinhole.dev/expose=22,53")
	d.mentions(said, "metadata.annotations[pinhole.dev/expose]")
	d.succeeds("", "annotate", "--overwrite", "pod", "bad", "pinhole.dev/expose=192.0.2.50:2222:22")
	d.succeeds("", "patch", "deployment", "bad", "-p",
		`{"spec":{"template":{"metadata":{"annotations":{"pinhole.dev/expose":null}}}}}`)

	d.succeeds("", "delete", "pod", "held", "--wait=false")
	d.succeeds("", "patch", "pod", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	d.fails("", "get", "pod", "held")
	d.succeeds("", "delete", "pod", "bad", "--now", "--wait=false")
	d.succeeds("", "delete", "deployment,statefulset,cronjob", "bad")
}

func TestAReleasedPortIsAtOnceFree(t *testing.T) {
	d := newDesk(t, "released")
	for round := range 5 {
		name := fmt.Sprintf("holder-%d", round)
		d.accepted(pod(name, expose("192.0.2.51:80")))
		d.mentions(d.refused(pod("other", expose("192.0.2.51:80"))), "released/"+name)
		d.succeeds("", "delete", "pod", name, "--now")
	}
	d.accepted(workload("Deployment", "web", expose("192.0.2.51:80"), "replicas: 0"))
	d.succeeds("", "delete", "deployment", "web")
	d.accepted(workload("StatefulSet", "web", expose("192.0.2.51:80"), "replicas: 0"))
}

func TestAFinishedPodHoldsNothing(t *testing.T) {
	d := newDesk(t, "finished")
	for index, phase := range []string{"Succeeded", "Failed"} {
		port := fmt.Sprintf("192.0.2.52:%d", 8000+index)
		name := strings.ToLower(phase)
		d.accepted(pod(name, expose(port), "nodeName: node-1"))
		d.reportStatus(name, "Running")
		d.refused(pod("after-"+name, expose(port)))
		d.reportStatus(name, phase)
		d.accepted(pod("after-"+name, expose(port)))
	}
}

func TestAServerSideDryRunLeavesNothing(t *testing.T) {
	d := newDesk(t, "dry-run")
	result := d.succeeds(pod("tried", expose("192.0.2.53:80")), "apply", "--dry-run=server", "-f", "-", "-o", "yaml")
	d.mentions(result.Stdout, effective, enabled)
	d.succeeds(workload("Deployment", "tried", expose("192.0.2.53:81")), "apply", "--dry-run=server", "-f", "-")
	d.accepted(pod("real", expose("192.0.2.53:80,192.0.2.53:81")))
	d.mentions(d.fails(pod("tried", expose("192.0.2.53:80")), "apply", "--dry-run=server", "-f", "-"), "dry-run/real")
}

func TestOfManySimultaneousRequestsForOnePortOneIsAccepted(t *testing.T) {
	d := newDesk(t, "race")
	for round := range 5 {
		var wait sync.WaitGroup
		results := make([]error, 20)
		for index := range results {
			wait.Add(1)
			go func() {
				defer wait.Done()
				results[index] = d.cluster.Do(context.Background(), 0, http.MethodPost, d.podsPath(), object{
					"metadata": object{
						"name":        fmt.Sprintf("racer-%d-%d", round, index),
						"annotations": expose(fmt.Sprintf("192.0.2.54:%d", 9000+round)),
					},
					"spec": object{"containers": []object{{"name": "main", "image": "example.com/app:1"}}},
				}, nil)
			}()
		}
		wait.Wait()
		accepted := 0
		for _, err := range results {
			var status *lab.StatusError
			switch {
			case err == nil:
				accepted++
			case errors.As(err, &status) && status.Code == http.StatusUnprocessableEntity:
			default:
				t.Errorf("neither accepted nor refused: %v", err)
			}
		}
		if accepted != 1 {
			t.Errorf("round %d: %d pods were accepted", round, accepted)
		}
	}
}

// keepHouse does for all pods of the namespace what scheduler and kubelet would: it binds them, runs them, and lets go
// of those that are to be deleted.
func (d desk) keepHouse() []storedPod {
	d.t.Helper()
	for _, pod := range d.pods() {
		path := d.podsPath() + "/" + pod.Metadata.Name
		switch {
		case pod.Metadata.DeletionTimestamp != "":
			d.unlessGone(http.MethodDelete, path, object{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})
		case pod.Spec.NodeName == "":
			d.unlessGone(http.MethodPost, path+"/binding", object{
				"apiVersion": "v1", "kind": "Binding", "metadata": object{"name": pod.Metadata.Name},
				"target": object{"kind": "Node", "name": "node-1"},
			})
			d.unlessGone(http.MethodPatch, path+"/status", statusOf("Running"))
		}
	}
	return d.pods()
}

// unlessGone sends a request about an object that a controller may delete at any time.
func (d desk) unlessGone(method, path string, body object) {
	d.t.Helper()
	err := d.cluster.Do(context.Background(), 0, method, path, body, nil)
	var status *lab.StatusError
	// One that is being deleted takes no node.
	if err != nil && (!errors.As(err, &status) || status.Code != http.StatusNotFound && status.Code != http.StatusConflict) {
		d.t.Fatal(err)
	}
}

func TestARollingUpdateOfAPortHoldingDeploymentIsNotBlocked(t *testing.T) {
	d := newDesk(t, "rolling")
	d.accepted(workload("Deployment", "web", expose("192.0.2.55:443:8443"),
		"replicas: 1", "strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}"))
	running := ""
	for version := 1; version <= 4; version++ {
		if version != 1 {
			d.succeeds("", "set", "image", "deployment/web", fmt.Sprintf("main=example.com/app:%d", version))
		}
		// A newer request in the template, too: still the same holder.
		if version == 3 {
			d.succeeds("", "patch", "deployment", "web", "-p",
				`{"spec":{"template":{"metadata":{"annotations":{"pinhole.dev/expose":"192.0.2.55:443:8443,192.0.2.55:80:8080"}}}}}`)
		}
		d.eventually(func() error {
			pods := d.keepHouse()
			if len(pods) != 1 || pods[0].Metadata.Name == running || pods[0].Spec.NodeName == "" {
				return fmt.Errorf("version %d: the pods are %v, before it was %s; %s", version, pods, running,
					d.kubectl("", "get", "events", "--field-selector=type=Warning").Stdout)
			}
			running = pods[0].Metadata.Name
			return nil
		})
		if said := d.kubectl("", "get", "events", "--field-selector=reason=FailedCreate").Stdout; strings.Contains(said, "denied") {
			t.Errorf("a pod of the update was refused:\n%s", said)
		}
	}
	d.mentions(d.refused(pod("thief", expose("192.0.2.55:443"))), "Deployment rolling/web")
	d.succeeds("", "rollout", "status", "deployment/web", "--timeout=20s")
	d.succeeds("", "rollout", "undo", "deployment/web")
}

func TestThePodsOfEachWorkloadKindBelongToTheirWorkload(t *testing.T) {
	d := newDesk(t, "owners")
	for index, kind := range []string{"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"} {
		name := strings.ToLower(kind)
		port := fmt.Sprintf("192.0.2.56:%d", 8000+index)
		d.accepted(workload(kind, name, expose(port)))
		d.eventually(func() error {
			for _, pod := range d.pods() {
				if strings.HasPrefix(pod.Metadata.Name, name) && pod.Metadata.Annotations[effective] != "" {
					return nil
				}
			}
			return fmt.Errorf("%s has no pod: %s", kind, d.kubectl("", "get", "events").Stdout)
		})
		d.mentions(d.refused(pod("thief", expose(port))), kind+" owners/"+name)
	}
	d.accepted(workload("CronJob", "nightly", expose("192.0.2.56:9000")))
	d.succeeds("", "create", "job", "now", "--from=cronjob/nightly")
	d.eventually(func() error {
		for _, pod := range d.pods() {
			if strings.HasPrefix(pod.Metadata.Name, "now-") {
				return nil
			}
		}
		return fmt.Errorf("the CronJob's Job has no pod: %s", d.kubectl("", "get", "events").Stdout)
	})
	d.mentions(d.refused(pod("thief", expose("192.0.2.56:9000"))), "CronJob owners/nightly")
}

func TestWarningsSayWhatWillHappen(t *testing.T) {
	d := newDesk(t, "warnings")
	var transcript strings.Builder
	warned := func(title, manifest string) {
		d.t.Helper()
		result := d.accepted(manifest)
		for _, line := range strings.Split(result.Stderr, "\n") {
			if text, isWarning := strings.CutPrefix(line, "Warning: "); isWarning && 120 < len(text) {
				t.Errorf("%d characters are too many for a warning: %s", len(text), text)
			}
		}
		fmt.Fprintf(&transcript, "# %s\n%s\n", title, result.Stderr)
	}
	warned("three replicas, one fixed address and port",
		workload("Deployment", "three", expose("192.0.2.57:443:8443"), "replicas: 3"))
	warned("one replica, one fixed address and port: nothing to say",
		workload("Deployment", "one", expose("192.0.2.57:444:8443"), "replicas: 1"))
	// No other test uses this port of the nodes.
	d.accepted(pod("first", expose("4000:2525"), "nodeName: node-1"))
	warned("a port of the node's own address that is taken on node-1", pod("second", expose("4000:2525")))
	warned("the same for a Deployment", workload("Deployment", "second", expose("4000:2525")))
	fmt.Fprintf(&transcript, "# the same on node-1 itself\n%s\n", d.refused(pod("third", expose("4000:2525"), "nodeName: node-1")))
	fmt.Fprintf(&transcript, "# the same with a selector for node-1\n%s\n",
		d.refused(pod("third", expose("4000:2525"), "nodeSelector: {kubernetes.io/hostname: node-1}")))
	warned("the same on node-2: nothing to say", pod("fourth", expose("4000:2525"), "nodeName: node-2"))
	warned("a misspelt annotation", pod("misspelt", notes{"pinhole.dev/expsoe": "80"}))
	warned("podnat-controller's annotation where the operator does not read it",
		pod("podnat", notes{"bln.space/podnat": `{"entries":[{"srcPort":22,"dstPort":22}]}`}))
	warned("ACK's annotations", pod("ack", notes{"k8s.aliyun.com/pod-dnat": "true", "k8s.aliyun.com/pod-dnat-expose-port": "80"}))
	d.golden("warnings.txt", transcript.String())
}

func TestUnannotatedObjectsCostNoCall(t *testing.T) {
	d := newQuietDesk(t, "no-calls")
	before := d.settledWebhookCalls()
	d.accepted(pod("plain", nil, "nodeName: node-1"))
	d.accepted(pod("foreign", notes{"example.com/nat": "25"}))
	d.succeeds("", "label", "pod", "plain", "team=mail")
	d.reportStatus("plain", "Running")
	d.reportStatus("plain", "Succeeded")
	for _, kind := range kinds {
		d.accepted(workload(kind, "plain", nil))
	}
	d.succeeds("", "scale", "deployment", "plain", "--replicas=2")
	d.succeeds("", "delete", "pod", "plain", "--now", "--wait=false")
	if after := d.webhookCalls(); after != before {
		t.Errorf("%v calls were made", after-before)
	}

	// The same count does move when there is something to ask.
	d.accepted(pod("web", expose("192.0.2.58:80"), "nodeName: node-1"))
	after := d.webhookCalls()
	if after != before+2 {
		t.Errorf("an annotated pod cost %v calls, expected one to mutate and one to validate", after-before)
	}
	d.succeeds("", "label", "pod", "web", "team=mail")
	d.succeeds("", "annotate", "pod", "web", "example.com/note=kept")
	d.reportStatus("web", "Running")
	d.succeeds("", "delete", "pod", "web", "--now", "--wait=false")
	if again := d.webhookCalls(); again != after {
		t.Errorf("updates that leave the request alone cost %v calls", again-after)
	}
}

// settledWebhookCalls counts once the controllers have done what earlier tests left to them.
func (d desk) settledWebhookCalls() float64 {
	d.t.Helper()
	calls := d.webhookCalls()
	d.eventually(func() error {
		time.Sleep(2 * time.Second)
		before := calls
		calls = d.webhookCalls()
		if calls != before {
			return fmt.Errorf("%v calls were made meanwhile", calls-before)
		}
		return nil
	})
	return calls
}

// webhookCalls counts the calls that the API server made to the webhooks of pinhole.dev.
func (d desk) webhookCalls() float64 {
	d.t.Helper()
	calls, err := d.cluster.WebhookCalls(0)
	if err != nil {
		d.t.Fatal(err)
	}
	return calls.Total
}

func TestNamespacesThatMustComeUpFirstAreExempt(t *testing.T) {
	d := newDesk(t, "exempt")
	for _, namespace := range []string{"kube-system", lab.WebhookNamespace} {
		d.another(namespace).accepted(pod("exempt", expose("22")))
	}
}

func TestMirrorPodsAreLeftToTheirNode(t *testing.T) {
	d := newDesk(t, "mirror")
	d.accepted(pod("static-node-1", notes{"pinhole.dev/expose": "http", "kubernetes.io/config.mirror": "static"}, "nodeName: node-1"))
}
