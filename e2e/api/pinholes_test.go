package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// shown is a line of `kubectl get pinholes` without the age, and the message of Accepted.
func (c clerk) shown(name string) string {
	c.t.Helper()
	result, err := c.cluster.Kubectl("", "get", "ph", name, "--namespace="+c.namespace, "-o", `jsonpath={.metadata.name} `+
		`{.status.external} {.status.target} {.status.node} {.status.holder} `+
		`{.status.conditions[?(@.type=="Programmed")].status} {.status.conditions[?(@.type=="Programmed")].reason} `+
		`{.status.conditions[?(@.type=="Accepted")].message}`)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(result.Stdout + result.Stderr)
}

func (c clerk) eventuallyShown(name, expected string) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		if shown := c.shown(name); !strings.Contains(shown, expected) {
			return fmt.Errorf("%s is shown as\n%s\nexpected\n%s", name, shown, expected)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
}

func (c clerk) kubectl(stdin string, arguments ...string) (string, bool) {
	c.t.Helper()
	result, err := c.cluster.Kubectl(stdin, append(arguments, "--namespace="+c.namespace)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return result.Stdout + result.Stderr, result.Succeeded
}

func (c clerk) placed(name, ports string) {
	c.t.Helper()
	c.placedAt("node-7", name, ports)
}

func (c clerk) placedAt(node, name, ports string) {
	c.t.Helper()
	pod := asking(name, ports)
	pod["spec"].(object)["nodeName"] = node
	if code, said := c.create("", pod); code != http.StatusCreated {
		c.t.Fatalf("HTTP %d: %s", code, said)
	}
}

// runs says of a pod what its kubelet does once its containers are ready.
func (c clerk) runs(name, ip string) {
	c.t.Helper()
	c.must(http.MethodPatch, c.podsPath()+"/"+name+"/status", statusAt("Running", ip), nil)
}

func TestAPodsPinholeShowsHowItStandsAndGoesWithIt(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "shown")
	c.placed("mx", "192.0.2.70:25,192.0.2.70:8080:80")
	c.eventuallyShown("mx", "mx 192.0.2.70:25/tcp +1 Pod mx node-7 Pod mx Unknown Waiting")
	c.must(http.MethodPatch, c.podsPath()+"/mx/status", object{"status": object{"phase": "Running",
		"podIP": "10.244.7.9", "podIPs": []object{{"ip": "10.244.7.9"}}}}, nil)
	c.eventuallyShown("mx", "mx 192.0.2.70:25/tcp +1 10.244.7.9:25 node-7 Pod mx Unknown Waiting")
	if said, found := c.kubectl("", "get", "ph", "--selector=node.pinhole.dev/node-7"); !found || !strings.Contains(said, "mx ") {
		t.Errorf("the node's label selects\n%s", said)
	}

	c.must(http.MethodPatch, c.podsPath()+"/mx", object{"metadata": object{"annotations": notes{"pinhole.dev/expose": "192.0.2.70:26:25"}}}, nil)
	c.eventuallyShown("mx", "mx 192.0.2.70:26/tcp 10.244.7.9:25 node-7")
	c.must(http.MethodPatch, c.podsPath()+"/mx", object{"metadata": object{"annotations": object{"pinhole.dev/expose": nil}}}, nil)
	c.eventuallyShown("mx", "NotFound")

	c.placed("brief", "192.0.2.70:27")
	c.eventuallyShown("brief", "brief 192.0.2.70:27/tcp Pod brief")
	c.must(http.MethodDelete, c.podsPath()+"/brief", object{"gracePeriodSeconds": 0}, nil)
	c.eventuallyShown("brief", "NotFound")
}

func TestNobodyElseWritesWhatAgentsRelyOn(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "forged")
	c.placed("mx", "192.0.2.71:25")
	c.eventuallyShown("mx", "mx 192.0.2.71:25/tcp Pod mx node-7")
	forPod := pinhole("forged", "target: {pod: forged}, ports: [{port: 22}]")
	grant := `{"status":{"endpoints":[{"address":"192.0.2.71","protocol":"TCP","port":22,"targetPort":22}]}}`
	const status, spec = "the status of a Pinhole is Pinhole's own", "written by Pinhole's controller alone"
	for _, attempt := range []struct {
		stdin, expected string
		arguments       []string
	}{
		{forPod, spec, []string{"create", "-f", "-"}},
		{"", spec, []string{"patch", "ph", "mx", "--type=merge", "-p", `{"spec":{"ports":[{"port":22}]}}`}},
		{"", spec, []string{"label", "ph", "mx", "node.pinhole.dev/node-8="}},
		{"", status, []string{"patch", "ph", "mx", "--type=merge", "--subresource=status", "-p", grant}},
	} {
		if said, allowed := c.kubectl(attempt.stdin, attempt.arguments...); allowed || !strings.Contains(said, attempt.expected) {
			t.Errorf("kubectl %v: %s", attempt.arguments, said)
		}
	}
	if said, allowed := c.kubectl("", "annotate", "ph", "mx", "example.com/note=kept"); !allowed {
		t.Errorf("a note was refused: %s", said)
	}
}

func TestAnAgentReportsOnItsOwnNodeAndChangesNothingElse(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "stolen")
	c.placed("mx", "192.0.2.85:25")
	c.eventuallyShown("mx", "mx 192.0.2.85:25/tcp Pod mx node-7")
	const path = "/apis/pinhole.dev/v1alpha1/namespaces/stolen/pinholes/mx/status"
	// asAgent has the agent of a node write a status; "" is a token that names no node.
	asAgent := func(node, contentType, query string, status object) (string, bool) {
		t.Helper()
		headers := map[string]string{"Impersonate-User": "system:serviceaccount:pinhole-system:pinhole-agent", "Content-Type": contentType}
		if node != "" {
			headers["Impersonate-Extra-authentication.kubernetes.io%2Fnode-name"] = node
		}
		body := object{"apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole", "metadata": object{"name": "mx"}, "status": status}
		err := c.cluster.DoWith(t.Context(), 0, headers, http.MethodPatch, path+query, body, nil)
		return fmt.Sprint(err), err == nil
	}
	const merge, apply = "application/merge-patch+json", "application/apply-patch+yaml"
	report := func(node string, programmed bool) object {
		return object{"name": node, "programmed": programmed, "reason": "Programmed", "message": "", "observedGeneration": 1}
	}
	for _, node := range []string{"node-8", "node-7", "node-7"} {
		said, allowed := asAgent(node, apply, "?force=true&fieldManager=pinhole-agent-"+node, object{"nodes": []object{report(node, true)}})
		if !allowed {
			t.Errorf("the report of %s: %s", node, said)
		}
	}
	own := []object{report("node-8", true), report("node-7", false)}
	for what, status := range map[string]object{
		"targets":            {"targets": []object{{"pod": "mx", "podUID": "u", "addresses": []string{"10.9.9.9"}, "active": true}}},
		"endpoints":          {"endpoints": []object{{"address": "192.0.2.85", "protocol": "TCP", "port": 22, "targetPort": 22}}},
		"no endpoints":       {"endpoints": nil},
		"releasing":          {"releasing": []object{{"node": "node-8", "address": "192.0.2.85", "protocol": "TCP", "port": 22, "generation": 1, "since": "2026-01-01T00:00:00Z"}}},
		"conditions":         {"conditions": []object{}},
		"observedGeneration": {"observedGeneration": 9},
		"holder":             {"holder": "Pod other"},
		"another's entry":    {"nodes": []object{report("node-8", false), report("node-7", true)}},
		"no other's entry":   {"nodes": []object{report("node-7", true)}},
		"a further entry":    {"nodes": []object{report("node-8", true), report("node-7", true), report("node-9", true)}},
	} {
		if said, allowed := asAgent("node-7", merge, "", status); allowed || !strings.Contains(said, "an agent reports on its own node alone") {
			t.Errorf("%s, by the agent of node-7: %s", what, said)
		}
	}
	if said, allowed := asAgent("node-7", merge, "", object{"nodes": own}); !allowed {
		t.Errorf("its own entry: %s", said)
	}
	if said, allowed := asAgent("", merge, "", object{"nodes": []object{report("node-8", false)}}); !allowed {
		t.Errorf("a report by a token that names no node: %s", said)
	}
	if said, allowed := asAgent("", merge, "", object{"observedGeneration": 9}); allowed {
		t.Errorf("more than a report by a token that names no node: %s", said)
	}
}

// Its ports would be the next holder's while a node still leads them to its pods.
func TestOnlyWhoeverMayEndPinholesEverywhereEndsOneBeforeItsNodesHaveLetGo(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "stripped")
	for name, port := range map[string]string{"mx": "25", "web": "443"} {
		c.placed(name, "192.0.2.110:"+port)
		c.eventuallyShown(name, name+" 192.0.2.110:"+port+"/tcp Pod "+name+" node-7")
	}
	may := func(user, kind, path string, rules ...object) {
		t.Helper()
		name := object{"name": "stripped-" + user}
		path = "/apis/rbac.authorization.k8s.io/v1/" + path + strings.ToLower(kind)
		c.must(http.MethodPost, path+"s", object{"metadata": name, "rules": rules}, nil)
		c.must(http.MethodPost, path+"bindings", object{"metadata": name,
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name["name"]},
			"subjects": []object{{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}}}, nil)
	}
	ours := func(resource, verb string) object {
		return object{"apiGroups": []string{"pinhole.dev"}, "resources": []string{resource}, "verbs": []string{verb}}
	}
	may("tenant", "Role", "namespaces/stripped/", object{"apiGroups": []string{"*"}, "resources": []string{"*"}, "verbs": []string{"*"}})
	may("operator", "ClusterRole", "", ours("pinholes", "get"), ours("pinholes", "patch"), ours("pinholes/finalizers", "update"))
	strip := func(name string, as ...string) (string, bool) {
		return c.kubectl("", append(as, "patch", "ph", name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)...)
	}
	for _, step := range [][]string{{"annotate", "ph", "mx", "example.com/note=kept"}, {"delete", "ph", "mx", "--wait=false"}} {
		if said, allowed := strip("mx", "--as=tenant"); allowed || !strings.Contains(said, "the controller takes it off then") {
			t.Errorf("who owns the namespace took the finalizer off: %s", said)
		}
		if said, allowed := c.kubectl("", append(step, "--as=tenant")...); !allowed {
			t.Errorf("kubectl %v: %s", step, said)
		}
	}
	if said, allowed := strip("mx", "--as=tenant"); allowed || !strings.Contains(said, "the controller takes it off then") {
		t.Errorf("who owns the namespace took the finalizer off what is deleted: %s", said)
	}
	if said, allowed := strip("mx", "--as=operator"); !allowed {
		t.Errorf("whoever may update pinholes/finalizers everywhere: %s", said)
	}
	if said, allowed := strip("web"); !allowed {
		t.Errorf("an administrator of the cluster: %s", said)
	}
}

func TestAPinholeThatAUserWroteIsNeverTakenOver(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "theirs")
	if said, created := c.kubectl(leads("mx", "192.0.2.72", "{port: 443}"), "create", "-f", "-"); !created {
		t.Fatal(said)
	}
	c.placed("mx", "192.0.2.72:25")
	if err := lab.Poll(patience, func() error {
		said, _ := c.kubectl("", "get", "events", "--field-selector=involvedObject.name=mx")
		if !strings.Contains(said, "a Pinhole named mx that somebody else wrote") {
			return fmt.Errorf("the events of the pod are:\n%s", said)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	c.eventuallyShown("mx", "Pinhole mx")
	said, _ := c.kubectl("", "get", "ph", "mx", "-o", "jsonpath={.spec.target}{.spec.holder}{.status.holder}{.metadata.ownerReferences}")
	if said != `{"service":"web"}Pinhole mx` {
		t.Errorf("the user's object was changed: %s", said)
	}
}

// startAgent starts an agent of a Node node-1 that has this address.
func (c clerk) startAgent(address string, arguments ...string) *lab.Agent {
	c.t.Helper()
	if err := lab.AddNodeAddress(address); err != nil {
		c.t.Fatal(err)
	}
	// Or the next test's agent would serve what is left of this one.
	c.t.Cleanup(func() {
		if err := lab.RemoveNodeAddress(address); err != nil {
			c.t.Error(err)
		}
	})
	return c.startAgentOf(object{"metadata": object{"name": "node-1"},
		"spec": object{"podCIDR": "10.244.1.0/24", "podCIDRs": []string{"10.244.1.0/24"}}}, arguments...)
}

// startAgentOf makes a Node node-1, starts its agent, and waits until that is ready; both go with the test, and what the agent
// has programmed. The sandbox is the node, so whoever starts one runs beside no other test with an agent.
func (c clerk) startAgentOf(node object, arguments ...string) *lab.Agent {
	c.t.Helper()
	c.must(http.MethodPost, "/api/v1/nodes", node, nil)
	c.t.Cleanup(func() { c.must(http.MethodDelete, "/api/v1/nodes/node-1", nil, nil) })
	agent, err := c.cluster.StartAgent("node-1", arguments...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Log(agent.LogTail())
		}
		if err := errors.Join(agent.Stop(agentPatience), c.cluster.CleanNode()); err != nil {
			c.t.Error(err)
		}
	})
	if err := agent.AwaitReady(); err != nil {
		c.t.Fatal(err)
	}
	return agent
}

// pause keeps the agent of node-1 from changing anything, and returns once it has heard so.
func (c clerk) pause(paused bool) {
	c.t.Helper()
	if said, patched := c.kubectl("", "patch", "natnode", "node-1", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"paused":%t}}`, paused)); !patched {
		c.t.Fatal(said)
	}
	if !paused {
		return
	}
	if said, heard := c.kubectl("", "wait", "--for=condition=Paused", "natnode/node-1", "--timeout=30s"); !heard {
		c.t.Fatal(said)
	}
}

func TestAnAgentServesWhatIsGrantedAndSaysSoInThePinhole(t *testing.T) {
	c := newClerk(t, "granted")
	agent := c.startAgent("192.0.2.75", "--nat-node")
	entries := func(expected bool) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			entries, err := agent.Entries()
			if err == nil && strings.Contains(entries, "granted/mx") != expected {
				err = fmt.Errorf("the kernel has %s", entries)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}

	c.placedAt("node-1", "mx", "192.0.2.75:2525:25")
	c.eventuallyShown("mx", "mx 192.0.2.75:2525/tcp Pod mx node-1 Pod mx False NoAddress")
	c.must(http.MethodPatch, c.podsPath()+"/mx/status", object{"status": object{"phase": "Running",
		"podIP": "10.244.1.9", "podIPs": []object{{"ip": "10.244.1.9"}}}}, nil)
	if said, programmed := c.kubectl("", "wait", "--for=condition=Programmed", "ph/mx", "--timeout=30s"); !programmed {
		t.Errorf("%s\n%s", said, c.shown("mx"))
	}
	c.eventuallyShown("mx", "mx 192.0.2.75:2525/tcp 10.244.1.9:25 node-1 Pod mx True Programmed")
	entries(true)

	// Whoever takes the claim away by force takes the port from nobody who has it.
	c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/portclaims/v4-192-0-2-75-tcp-2525", nil, nil)
	c.eventuallyShown("mx", "True Programmed")
	entries(true)

	// Its port is nobody else's before the node has let go of it, and with its namespace deleted as well.
	const claim = "v4-192-0-2-75-tcp-2525"
	uid := c.gated("mx").Metadata.UID
	c.boundTo(uid, "192.0.2.75", claim)
	c.pause(true)
	c.must(http.MethodDelete, c.podsPath()+"/mx", object{"gracePeriodSeconds": 0}, nil)
	c.eventuallyShown("mx", "False Releasing")
	c.must(http.MethodDelete, "/api/v1/namespaces/granted", nil, nil)
	time.Sleep(5 * time.Second)
	c.eventuallyShown("mx", "False Releasing")
	entries(true)
	if now := c.claims("192.0.2.75")[claim].Spec; now.PodUID != uid || uid == "" {
		t.Errorf("the claim of pod %q leads to %q and is %s", uid, now.PodUID, now.State)
	}
	c.pause(false)
	released := time.Now()
	entries(false)
	c.eventuallyShown("mx", "NotFound")
	c.boundTo("", "192.0.2.75", claim)
	t.Logf("released %s after the node was no longer paused", time.Since(released).Round(100*time.Millisecond))

	events, err := c.cluster.Audit()
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events {
		if event.User.Username == "system:serviceaccount:pinhole-system:pinhole-agent" && event.ObjectRef.Resource == "pinholes" &&
			event.ObjectRef.Subresource == "" && !strings.Contains(event.RequestURI, "labelSelector=node.pinhole.dev%2Fnode-1") {
			t.Errorf("the agent looked at Pinholes beyond its node: %s", event.RequestURI)
		}
	}
}

// kubelet says of a pod where it is and whether its containers are ready, as a kubelet does: other conditions stay.
func (c clerk) kubelet(name, address, ready string) {
	c.t.Helper()
	status := fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%[1]q}],"conditions":[{"type":"ContainersReady","status":%q}]}}`,
		address, ready)
	if said, written := c.kubectl("", "patch", "pod", name, "--subresource=status", "--type=strategic", "-p", status); !written {
		c.t.Fatal(said)
	}
}

const programmedGate = "pinhole.dev/programmed"

func TestASuspendedPodKeepsItsPortsClosed(t *testing.T) {
	c := newClerk(t, "suspended")
	agent := c.startAgent("192.0.2.112")
	const key, claim = "pinhole.dev/suspended", "v4-192-0-2-112-tcp-2527"
	served := func(expected bool) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			entries, err := agent.Entries()
			if err == nil && (!strings.Contains(entries, "suspended/mx") || strings.Contains(entries, "10.244.1.9") != expected) {
				err = fmt.Errorf("the kernel has %s", entries)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	annotate := func(change string) {
		t.Helper()
		if said, allowed := c.kubectl("", "annotate", "pod", "mx", "--overwrite", change); !allowed {
			t.Fatal(said)
		}
	}
	c.placedAt("node-1", "mx", "192.0.2.112:2527:25")
	c.kubelet("mx", "10.244.1.9", "True")
	c.eventuallyShown("mx", "node-1 Pod mx True Programmed")
	served(true)
	uid := c.gated("mx").Metadata.UID

	annotate(key + "=true")
	c.eventuallyShown("mx", "node-1 Pod mx False Suspended")
	served(false)
	if said, allowed := c.kubectl("", "annotate", "pod", "mx", "--overwrite", key+"=maybe"); allowed || !strings.Contains(said, key+"]: maybe: is none of true, false") {
		t.Errorf("what is neither was let through: %s", said)
	}
	if code, said := c.create("", asking("other", "192.0.2.112:2527")); code != http.StatusUnprocessableEntity {
		t.Errorf("HTTP %d: %s", code, said)
	}
	c.boundTo(uid, "192.0.2.112", claim)
	annotate(key + "-")
	c.eventuallyShown("mx", "node-1 Pod mx True Programmed")
	served(true)
}

// Pods of one holder that have the gate: the older one serves until the younger one is ready, and that one until it is gone.
func TestAPodWithTheGateIsReadyOnlyWhenTheKernelAnswers(t *testing.T) {
	c := newClerk(t, "gated")
	c.startAgent("192.0.2.76")
	gated := func(name, handover string) {
		pod := asking(name, "192.0.2.76:2526:25")
		pod["metadata"].(object)["annotations"].(notes)["pinhole.dev/handover"] = handover
		pod["metadata"].(object)["ownerReferences"] = []object{{"apiVersion": "example.com/v1", "kind": "Fleet", "name": "mx",
			"uid": "6ab5e84e-2a5a-4d3c-8d0a-4f0f5a6f0a01", "controller": true}}
		pod["spec"].(object)["nodeName"] = "node-1"
		pod["spec"].(object)["readinessGates"] = []object{{"conditionType": programmedGate}}
		if code, said := c.create("", pod); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
	}
	says := func(name, expected string) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			template := `jsonpath={range .status.conditions[?(@.type=="` + programmedGate + `")]}{.status} {.reason}{end}`
			if said, _ := c.kubectl("", "get", "pod", name, "-o", template); said != expected {
				return fmt.Errorf("the gate of %s says %q, expected %q\n%s", name, said, expected, c.shown(name))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	gated("old", "WhenReady")
	says("old", "False NoAddress")
	c.kubelet("old", "10.244.1.31", "True")
	says("old", "True Programmed")

	gated("young", "WhenReady")
	c.kubelet("young", "10.244.1.32", "False")
	says("young", "False NotReady")
	says("old", "True Programmed")
	c.kubelet("young", "10.244.1.32", "True")
	says("young", "True Programmed")
	says("old", "True Standby")
	if said, kept := c.kubectl("", "wait", "--for=condition=ContainersReady", "pod/old", "--timeout=1s"); !kept {
		t.Errorf("the conditions of others are gone: %s", said)
	}
	// A pod that waits until the other one is gone is ready meanwhile, or a rollout would wait for ever.
	gated("last", "WhenGone")
	c.kubelet("last", "10.244.1.33", "True")
	says("last", "True Standby")
	says("young", "True Programmed")
	c.must(http.MethodDelete, c.podsPath()+"/young", object{"gracePeriodSeconds": 0}, nil)
	says("last", "True Programmed")
	for _, name := range []string{"old", "last"} {
		c.must(http.MethodDelete, c.podsPath()+"/"+name, object{"gracePeriodSeconds": 0}, nil)
	}
}
