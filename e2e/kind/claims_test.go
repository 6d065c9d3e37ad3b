package kind

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// openPool is a NatPool that opens an address to every namespace, with its name and the address to be filled in.
const openPool = `{apiVersion: pinhole.dev/v1alpha1, kind: NatPool, metadata: {name: %s}, spec: {addresses: [%q], namespaces: {all: true}}}`

// withClaims is a scene in a cluster with claims, in which a pool opens an address to every namespace until the end.
func withClaims(t *testing.T, namespace, address string) (s scene, pool string) {
	t.Helper()
	if os.Getenv("E2E_CLAIMS") == "" {
		t.Fatal("claims are off in this cluster: E2E_CLAIMS=on e2e/kind/install, then E2E_CLAIMS=on e2e/kind/run")
	}
	// One of an earlier run goes once the ports that it granted have cooled down.
	pool = fmt.Sprintf("%s-%d", namespace, time.Now().Unix())
	kubectl(t, fmt.Sprintf(openPool, pool, address), "apply", "--filename=-")
	// After the scene, whose claims it waits for.
	t.Cleanup(func() { kubectl(t, "", "delete", "natpool", pool, "--wait=false") })
	return newScene(t, namespace), pool
}

// programmed waits as a user does until every node that serves a pod's ports has them in its kernel.
func (s scene) programmed(pod string) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, "the Pinhole of "+pod+" is programmed", func() error {
		output, err := tryKubectl("", "--namespace", s.namespace, "wait", "--for=condition=Programmed", "ph/"+pod, "--timeout=20s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	})
}

func TestWithClaimsOfTwoNamespacesThatRaceForAPortOneHasItAndIsReached(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, _ := withClaims(t, "races", address)
	scenes := []scene{s, newScene(t, "races-other")}
	const first, ports = 8100, 8
	for port := first; port < first+ports; port++ {
		said, failed := make([]string, len(scenes)), make([]error, len(scenes))
		var both sync.WaitGroup
		for index, each := range scenes {
			both.Go(func() {
				manifest := webPod(fmt.Sprintf("racer-%d", port), "pinhole.dev/expose", fmt.Sprintf("%s:%d:8080", address, port), atNode(worker))
				said[index], failed[index] = each.tryApply(manifest)
			})
		}
		both.Wait()
		if (failed[0] == nil) == (failed[1] == nil) {
			t.Fatalf("of two that asked for port %d at once, expected exactly one to get it:\n%s\n%s", port, said[0], said[1])
		}
		winner, refusal := 0, said[1]
		if failed[0] != nil {
			winner, refusal = 1, said[0]
		}
		for _, part := range []string{fmt.Sprintf("%s:%d/tcp: ", address, port), fmt.Sprintf("by Pod %s/racer-%d", scenes[winner].namespace, port)} {
			if !strings.Contains(refusal, part) {
				t.Errorf("the one that came second reads\n%s\nwithout %q", refusal, part)
			}
		}
	}
	for port := first; port < first+ports; port++ {
		if answer, expected := reaches(t, address, port, "hostname"), fmt.Sprintf("racer-%d", port); answer != expected {
			t.Errorf("port %d is answered by %s", port, answer)
		}
	}
}

func TestWithClaimsAPinholeShowsWhatIsReachedAndARolloutLosesNoConnection(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, _ := withClaims(t, "handover", address)
	s.apply(webDeployment("web", "pinhole.dev/expose", address+":8110:8080", 1, atNode(worker)))
	s.ready("app=web")
	name := s.onlyPod("app=web").Metadata.Name
	s.programmed(name)
	// Programmed is said of the kernel: no connection needs patience from here on.
	if answer, err := fetchFromClient(address, 8110, "hostname"); err != nil || answer != name {
		t.Errorf("%s answers: %v", answer, err)
	}
	target := s.onlyPod("app=web").Status.PodIPs[0].IP + ":8080"
	shown := strings.Split(kubectl(t, "", "get", "ph", "--all-namespaces"), "\n")
	if columns := strings.Join(strings.Fields(shown[0]), " "); columns != "NAMESPACE NAME EXTERNAL TARGET NODE HOLDER PROGRAMMED REASON AGE" {
		t.Errorf("the columns are %s", columns)
	}
	row := fmt.Sprintf("handover %s %s:8110/tcp %s %s Deployment web True ", name, address, target, worker)
	var found bool
	for _, line := range shown {
		found = found || strings.HasPrefix(strings.Join(strings.Fields(line), " "), row)
	}
	if !found {
		t.Errorf("it shows\n%s\nwithout the row %s", strings.Join(shown, "\n"), row)
	}

	calls := keepCalling(address, 8110)
	s.kubectl("rollout", "restart", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	last := s.lastPod("app=web")
	made := calls.finish()
	if len(made.failures) != 0 || len(made.answers) != 2 || made.answers[1] != last {
		t.Errorf("%d connections failed (%v); answers came from %v, expected %s and then %s",
			len(made.failures), made.failures, made.answers, name, last)
	}
}

func TestWithClaimsAPortIsGrantedByAPoolAndByNothingElse(t *testing.T) {
	address, ungranted := addressesOf(t, worker).v4, addressesOf(t, otherWorker).v4
	s, pool := withClaims(t, "pools", address)
	kubectl(t, `{"spec":{"protocols":["TCP"],"ports":[{"first":8112,"last":8113}],"quota":{"portsPerNamespace":2}}}`,
		"patch", "natpool", pool, "--type=merge", "--patch-file=/dev/stdin")
	for _, each := range []struct{ name, ports, says string }{
		{"an address of no pool", ungranted + ":8112", "no NatPool"},
		{"a port outside its ranges", address + ":8114", "is outside NatPool " + pool + ", which has 8112-8113"},
	} {
		if said := s.refused(webPod("web", "pinhole.dev/expose", each.ports)); !strings.Contains(said, each.says) {
			t.Errorf("%s: the user reads\n%s\nwithout %q", each.name, said, each.says)
		}
	}
	s.apply(webPod("first", "pinhole.dev/expose", address+":8112:8080,"+address+":8113:8080", atNode(worker)))
	s.ready("app=first")
	s.programmed("first")
	reaches(t, address, 8113, "hostname")
	eventually(t, 30*time.Second, "the pool says that it is full", func() error {
		if usage := kubectl(t, "", "get", "natpool", pool, "--output", "jsonpath={.status.usage.used} {.status.usage.free}"); usage != "2 0" {
			return fmt.Errorf("used and free are %q", usage)
		}
		return nil
	})
	s.kubectl("delete", "pod", "first", "--grace-period=1")
	unreachable(t, address, 8112)
	unreachable(t, address, 8113)
}

// fromPool is a pod that serves on a port which a pool finds, and has what it was told in its environment.
func fromPool(name, pool string, specification ...string) string {
	manifest := withEndpointsInItsEnvironment(webPod(name, "pinhole.dev/expose", "auto:8080", specification...))
	return strings.Replace(manifest, "annotations: {", "annotations: {pinhole.dev/pool: "+pool+", ", 1)
}

// withEndpointsInItsEnvironment is a manifest whose process is told what leads to it.
func withEndpointsInItsEnvironment(manifest string) string {
	const probe = "readinessProbe:"
	before, after, _ := strings.Cut(manifest, probe)
	margin := before[strings.LastIndex(before, "\n")+1:]
	told := "env: [{name: ENDPOINTS, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['pinhole.dev/endpoints']\"}}}]\n"
	return before + told + margin + probe + after
}

// told is the only port that a pod's process knows to lead to it.
func (s scene) told(name string) (address string, port int) {
	s.t.Helper()
	environment := s.kubectl("exec", name, "--", "/agnhost", "mounttest", "--file_content=/proc/1/environ")
	_, rest, _ := strings.Cut(environment, "ENDPOINTS=")
	value, _, _ := strings.Cut(rest, "\x00")
	var endpoints []struct {
		Address string
		Port    int
	}
	if err := json.Unmarshal([]byte(value), &endpoints); err != nil || len(endpoints) != 1 {
		s.t.Fatalf("%s was told %q: %v", name, environment, err)
	}
	return endpoints[0].Address, endpoints[0].Port
}

func TestWithClaimsAPodWaitsForAPortOfAFullPoolAndKnowsItFromItsFirstStart(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, pool := withClaims(t, "full", address)
	kubectl(t, `{"spec":{"ports":[{"first":8120,"last":8121}],"cooldownSeconds":1}}`,
		"patch", "natpool", pool, "--type=merge", "--patch-file=/dev/stdin")
	served := map[string]int{}
	for _, name := range []string{"first", "second"} {
		s.apply(fromPool(name, pool, atNode(worker)))
		s.ready("app=" + name)
		at, port := s.told(name)
		if answer := reaches(t, at, port, "hostname"); at != address || answer != name {
			t.Errorf("%s was told %s:%d, where %s answers", name, at, port, answer)
		}
		served[name] = port
	}
	if served["first"] == served["second"] {
		t.Fatalf("both were told port %d", served["first"])
	}

	s.apply(fromPool("third", pool, atNode(worker)))
	eventually(t, 30*time.Second, "the third is told to wait", func() error {
		events := s.kubectl("get", "events", "--field-selector=reason=NoFreePort,involvedObject.name=third")
		if !strings.Contains(events, fmt.Sprintf("no address of NatPool %s on node %s has a free port", pool, worker)) {
			return fmt.Errorf("the events are\n%s", events)
		}
		return nil
	})
	if third := s.onlyPod("app=third"); third.Spec.NodeName != "" {
		t.Errorf("without a port it was scheduled to %s", third.Spec.NodeName)
	}

	s.kubectl("delete", "pod", "first", "--grace-period=1")
	// Not before two minutes after somebody relied on the claim last.
	eventually(t, 180*time.Second, "the third is let go", func() error {
		if third := s.onlyPod("app=third"); third.Spec.NodeName == "" {
			return fmt.Errorf("it is told %q", third.Metadata.Annotations["pinhole.dev/endpoints"])
		}
		return nil
	})
	s.ready("app=third")
	at, port := s.told("third")
	if answer := reaches(t, at, port, "hostname"); answer != "third" || port != served["first"] {
		t.Errorf("the first had port %d; the third was told %s:%d, where %s answers", served["first"], at, port, answer)
	}
}

func TestWithClaimsAPortIsKeptForANodeThatDiedUntilItIsDeclaredDead(t *testing.T) {
	const dead = "node.kubernetes.io/out-of-service"
	diesAndFreesItsPortWhen(t, "dead", 8123, func() {
		kubectl(t, "", "taint", "node", otherWorker, dead+"=nodeshutdown:NoExecute")
	}, func() {
		_, _ = tryKubectl("", "taint", "node", otherWorker, dead+"-")
	})
}

func TestWithClaimsAPortIsKeptForANodeThatDiedUntilItIsDeleted(t *testing.T) {
	// With the networks of its pods: without them it would be given others.
	node := kubectl(t, "", "get", "node", otherWorker, "--output=json")
	diesAndFreesItsPortWhen(t, "deleted", 8124, func() {
		kubectl(t, "", "delete", "node", otherWorker)
		eventually(t, 60*time.Second, "nothing tells of its addresses any more", func() error {
			if left := kubectl(t, "", "get", "natnode", otherWorker, "--ignore-not-found", "--output=name"); left != "" {
				return fmt.Errorf("%s is there", left)
			}
			return nil
		})
	}, func() {
		kubectl(t, withoutIdentity(t, node), "create", "--filename=-")
	})
}

// withoutIdentity is an object as somebody would write it who makes it anew.
func withoutIdentity(t *testing.T, text string) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	metadata, _ := object["metadata"].(map[string]any)
	for _, given := range []string{"uid", "resourceVersion", "creationTimestamp", "managedFields"} {
		delete(metadata, given)
	}
	delete(object, "status")
	written, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(written)
}

// diesAndFreesItsPortWhen lets a node die that serves a port, which is nobody else's until this is declared; and lets it come
// back at the end, after `comesBack`.
func diesAndFreesItsPortWhen(t *testing.T, namespace string, port int, declared, comesBack func()) {
	t.Helper()
	address := addressesOf(t, otherWorker).v4
	s, pool := withClaims(t, namespace, address)
	other := newScene(t, namespace+"-other")
	kubectl(t, `{"spec":{"cooldownSeconds":1}}`, "patch", "natpool", pool, "--type=merge", "--patch-file=/dev/stdin")
	web := func(node string) string {
		return webPod("web", "pinhole.dev/expose", fmt.Sprintf("%s:%d:8080", address, port), atNode(node))
	}
	s.apply(web(otherWorker))
	s.ready("app=web")
	s.programmed("web")
	before := s.onlyPod("app=web").Status.PodIPs[0].IP
	if rules := onNode(t, otherWorker, "iptables-save -t nat; nft list ruleset"); !strings.Contains(rules, before) {
		t.Fatalf("%s is not in the rules of its node\n%s", before, rules)
	}

	freeze := func(verb string) {
		if output, err := command("", "docker", verb, otherWorker); err != nil {
			t.Fatalf("docker %s: %v\n%s", verb, err, output)
		}
	}
	freeze("pause")
	t.Cleanup(func() {
		comesBack()
		freeze("unpause")
		eventually(t, 120*time.Second, "the node is back", func() error {
			if output, err := tryKubectl("", "wait", "--for=condition=Ready", "node/"+otherWorker, "--timeout=20s"); err != nil {
				return fmt.Errorf("%w: %s", err, output)
			}
			return installed()
		})
		// What it still had in its kernel is gone, whatever it had slept through. It has the address, and serves it for the other pod.
		eventually(t, 30*time.Second, "the node removes what it no longer may serve", func() error {
			if rules := onNode(t, otherWorker, "iptables-save -t nat; nft list ruleset"); strings.Contains(rules, before) {
				return fmt.Errorf("its rules are\n%s", rules)
			}
			return nil
		})
	})
	s.kubectl("delete", "pod", "web", "--grace-period=0", "--force")
	var answered bool
	for began := time.Now(); time.Since(began) < 15*time.Second || !answered; time.Sleep(time.Second) {
		// Its kernel may still forward the port to whoever has the pod's address now.
		said := other.refused(web(worker))
		// A replica of the webhook may have died with the node, and nobody knows yet.
		if strings.Contains(said, "failed calling webhook") && time.Since(began) < 90*time.Second {
			continue
		}
		if !strings.Contains(said, "Pod "+namespace+"/web") {
			t.Fatalf("somebody else reads\n%s", said)
		}
		answered = true
	}
	declared()
	// Not before two minutes after somebody relied on the claim last.
	eventually(t, 180*time.Second, "the port is somebody else's", func() error {
		output, err := other.tryApply(web(worker))
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	})
}

func TestWithClaimsAStatefulSetKeepsItsPortWhenItIsMadeAgainOnAnotherNode(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, _ := withClaims(t, "kept", address)
	other := newScene(t, "kept-other")
	set := func(node string) string {
		return strings.Replace(workloads[0].manifest(8111, atNode(node)), `"8111:8080"`, fmt.Sprintf("%q", address+":8111:8080"), 1)
	}
	s.apply(set(worker))
	s.ready("app=statefulset")
	s.programmed("statefulset-0")
	s.kubectl("delete", "statefulset", "statefulset", "--cascade=foreground", "--wait")
	if said := other.refused(webPod("web", "pinhole.dev/expose", address+":8111:8080")); !strings.Contains(said, "kept") {
		t.Errorf("somebody else reads\n%s", said)
	}
	// The address stays where it is: that node forwards to the other one.
	s.apply(set(otherWorker))
	s.ready("app=statefulset")
	s.programmed("statefulset-0")
	if answer := reaches(t, address, 8111, "hostname"); answer != "statefulset-0" {
		t.Errorf("%s answers", answer)
	}
	if node := s.onlyPod("app=statefulset").Spec.NodeName; node != otherWorker {
		t.Errorf("it runs on %s", node)
	}
}
