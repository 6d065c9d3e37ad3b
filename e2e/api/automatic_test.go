package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

const endpoints = "pinhole.dev/endpoints"

type endpoint struct {
	Address, AdvertisedAddress, Protocol string
	Port, TargetPort                     int
}

type gatedPod struct {
	Metadata struct {
		Name, UID   string
		Annotations map[string]string
	}
	Spec struct {
		SchedulingGates []struct{ Name string }
		Affinity        json.RawMessage
	}
}

func (p gatedPod) told(t *testing.T) []endpoint {
	t.Helper()
	var told []endpoint
	if text := p.Metadata.Annotations[endpoints]; text != "" {
		if err := json.Unmarshal([]byte(text), &told); err != nil {
			t.Error(err)
		}
	}
	return told
}

// fromPool is a pod that leaves its ports to a pool.
func fromPool(name, ports, pool string) object {
	pod := asking(name, ports)
	pod["metadata"].(object)["annotations"] = notes{"pinhole.dev/expose": ports, "pinhole.dev/pool": pool, endpoints: "forged"}
	return pod
}

func (c clerk) gated(name string) gatedPod {
	c.t.Helper()
	var pod gatedPod
	c.must(http.MethodGet, c.podsPath()+"/"+name, nil, &pod)
	return pod
}

// letGo waits until a pod has its ports and may be scheduled.
func (c clerk) letGo(name string) (pod gatedPod) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		pod = c.gated(name)
		if len(pod.Spec.SchedulingGates) != 0 || len(pod.told(c.t)) == 0 {
			return fmt.Errorf("%s waits: %v, %s", name, pod.Spec.SchedulingGates, c.shown(name))
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	return pod
}

// boundTo waits until a claim is a pod's: a port is claimed and told to its pod before the controller notes whose it is.
func (c clerk) boundTo(uid, address, name string) (claim storedClaim) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		if claim = c.claims(address)[name]; claim.Spec.PodUID != uid {
			return fmt.Errorf("the claim %s is %v, expected the one of pod %s", name, claim, uid)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
	return claim
}

func TestAPodLearnsItsPortsBeforeItIsScheduled(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "found")
	c.must(http.MethodPost, poolsPath, natPool("found", object{
		"addresses": []string{"198.51.100.40", "198.51.100.41"}, "ports": []object{{"first": 30000, "last": 30127}},
		"namespaces": object{"names": []string{"found"}}, "nodes": object{"selector": object{"matchLabels": notes{"edge": "yes"}}},
	}), nil)
	if code, said := c.create("", fromPool("lobby", "auto:53,auto:53/udp,auto:9000/udp", "found")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	pod := c.letGo("lobby")
	told := pod.told(t)
	if len(told) != 3 || told[0].Address != told[2].Address || told[0].Port != told[1].Port || told[0].Port == told[2].Port {
		t.Errorf("the pod was told %v", told)
	}
	if told[0].Port < 30016 {
		t.Errorf("%d is of the static band", told[0].Port)
	}
	if !strings.Contains(string(pod.Spec.Affinity), `"key":"edge","operator":"In","values":["yes"]`) {
		t.Errorf("the pod is not pinned to the nodes of the pool: %s", pod.Spec.Affinity)
	}
	for _, one := range told {
		name := fmt.Sprintf("v4-%s-%s-%d", strings.ReplaceAll(one.Address, ".", "-"), strings.ToLower(one.Protocol), one.Port)
		if claim := c.boundTo(pod.Metadata.UID, one.Address, name); claim.Spec.Pool != "found" {
			t.Errorf("the claim %s is %v", name, claim)
		}
	}
	c.eventuallyShown("lobby", fmt.Sprintf("lobby %s:%d/tcp +2", told[0].Address, told[0].Port))

	// What somebody writes in their place is put right, and goes with the request.
	c.must(http.MethodPatch, c.podsPath()+"/lobby", object{"metadata": object{"annotations": notes{endpoints: "forged"}}}, nil)
	if err := lab.Poll(patience, func() error {
		if now := c.gated("lobby").Metadata.Annotations[endpoints]; now != pod.Metadata.Annotations[endpoints] {
			return fmt.Errorf("the pod is told %s", now)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	c.must(http.MethodPatch, c.podsPath()+"/lobby", object{"metadata": object{"annotations": object{"pinhole.dev/expose": nil}}}, nil)
	if now, found := c.gated("lobby").Metadata.Annotations[endpoints]; found {
		t.Errorf("a pod that asks for nothing is told %s", now)
	}

	// One that comes with its node has no gate, and is told nevertheless.
	placed := fromPool("placed", "auto:80", "found")
	placed["spec"].(object)["nodeName"] = "node-7"
	if code, said := c.create("", placed); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	c.letGo("placed")
	if code, said := c.create("?dryRun=All", fromPool("nowhere", "auto:80", "nowhere")); code != http.StatusUnprocessableEntity ||
		!strings.Contains(said, "is left to NatPool nowhere, which does not exist; this namespace may use") {
		t.Errorf("HTTP %d: %s", code, said)
	}
}

func TestAPodWithPortsByNameIsToldThemWhenItIsCreated(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "named")
	const first = `[{"address":"192.0.2.91","protocol":"TCP","port":443,"targetPort":8443}]`
	if code, said := c.create("?dryRun=All", asking("sip", "192.0.2.91:443:8443")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	var created gatedPod
	c.must(http.MethodPost, c.podsPath(), asking("sip", "192.0.2.91:443:8443"), &created)
	if told := created.Metadata.Annotations[endpoints]; told != first {
		t.Fatalf("it was told %q before anything could start", told)
	}
	// Whatever the controller sees first, it never takes that back.
	c.eventuallyShown("sip", "sip 192.0.2.91:443/tcp")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if told := c.gated("sip").Metadata.Annotations[endpoints]; told != first {
			t.Fatalf("it was told %q", told)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.must(http.MethodPatch, c.podsPath()+"/sip",
		object{"metadata": object{"annotations": notes{"pinhole.dev/expose": "192.0.2.91:444:8443"}}}, nil)
	if err := lab.Poll(patience, func() error {
		if told := c.gated("sip").Metadata.Annotations[endpoints]; told != strings.Replace(first, "443,", "444,", 1) {
			return fmt.Errorf("it is told %s", told)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestAPodIsToldTheAddressThatTheOutsideConnectsTo(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "translated")
	c.must(http.MethodPost, poolsPath, natPool("translated", object{
		"addresses": []string{"198.51.100.47"}, "namespaces": object{"names": []string{"translated"}},
		"advertisedAddresses": []object{{"address": "198.51.100.47", "advertised": "203.0.113.47"}},
	}), nil)
	// A replica that has yet to hear of the pool tells the address alone, and the controller puts that right.
	isTold := func(name string) (found endpoint) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			found = c.letGo(name).told(t)[0]
			if found.Address != "198.51.100.47" || found.AdvertisedAddress != "203.0.113.47" {
				return fmt.Errorf("the pod was told %+v", found)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		return found
	}
	c.grants("named", "198.51.100.47:2025")
	isTold("named")
	c.eventuallyShown("named", "named 203.0.113.47:2025/tcp Pod named")
	c.create("", fromPool("found", "auto:80", "translated"))
	c.eventuallyShown("found", fmt.Sprintf("found 203.0.113.47:%d/tcp", isTold("found").Port))
}

func TestAFullPoolKeepsPodsWaitingAndSaysSo(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "full")
	c.must(http.MethodPost, poolsPath, natPool("full", object{
		"addresses": []string{"198.51.100.42"}, "ports": []object{{"first": 30000, "last": 30001}},
		"namespaces": object{"names": []string{"full"}}, "cooldownSeconds": 1,
	}), nil)
	for _, name := range []string{"first", "second"} {
		c.create("", fromPool(name, "auto:80", "full"))
		c.letGo(name)
	}
	c.create("", fromPool("third", "auto:80", "full"))
	c.eventuallyShown("third", "auto:80/tcp: waits for 1 free port on one address: no address of NatPool full has a free port")
	if err := lab.Poll(patience, func() error {
		if said, _ := c.kubectl("", "get", "events", "--field-selector=reason=NoFreePort"); !strings.Contains(said, "pod/third") {
			return fmt.Errorf("the events are\n%s", said)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if gates := c.gated("third").Spec.SchedulingGates; len(gates) != 1 {
		t.Errorf("the pod has the gates %v", gates)
	}
	// A port that becomes free is the waiting pod's: a claim that nobody holds, as after its life is over.
	freed := c.gated("first").told(t)[0]
	c.must(http.MethodDelete, c.podsPath()+"/first", object{"gracePeriodSeconds": 0}, nil)
	// While the controller believes in the pod, a claim that somebody deletes comes back.
	c.eventuallyShown("first", "NotFound")
	c.must(http.MethodDelete, fmt.Sprintf("/apis/pinhole.dev/v1alpha1/portclaims/v4-198-51-100-42-tcp-%d", freed.Port), nil, nil)
	if got := c.letGo("third").told(t)[0]; got != freed {
		t.Errorf("%v was freed and %v was found", freed, got)
	}
}

func TestSixtyFourPodsAtOnceGetPortsOfTheirOwn(t *testing.T) {
	c := newClerk(t, "rush")
	c.must(http.MethodPost, poolsPath, natPool("rush", object{
		"addresses": []string{"198.51.100.43"}, "ports": []object{{"first": 31000, "last": 31511}}, "namespaces": object{"names": []string{"rush"}},
	}), nil)
	const pods = 64
	before := c.allocations()
	var all sync.WaitGroup
	for index := range pods {
		all.Add(1)
		go func() {
			defer all.Done()
			if code, said := c.create("", fromPool(fmt.Sprintf("match-%d", index), "auto:7777/udp", "rush")); code != http.StatusCreated {
				t.Errorf("HTTP %d: %s", code, said)
			}
		}()
	}
	all.Wait()
	owners := map[int]string{}
	for index := range pods {
		pod := c.letGo(fmt.Sprintf("match-%d", index))
		told := pod.told(t)
		if other, taken := owners[told[0].Port]; taken || len(told) != 1 {
			t.Errorf("%s and %s have %v", pod.Metadata.Name, other, told)
		}
		owners[told[0].Port] = pod.Metadata.UID
	}
	claims := c.claims("198.51.100.43")
	if len(claims) != pods {
		t.Errorf("%d pods have %d claims", pods, len(claims))
	}
	for port, uid := range owners {
		c.boundTo(uid, "198.51.100.43", fmt.Sprintf("v4-198-51-100-43-udp-%d", port))
	}
	after := c.allocations()
	searches, grants := after[0]-before[0], after[1]-before[1]
	t.Logf("%v attempts for %v grants", searches, grants)
	if grants < pods || 2*grants < searches {
		t.Errorf("%v attempts for %v grants", searches, grants)
	}
}

// allocations are the attempts to claim ports that were found, and those that succeeded, of all controllers.
func (c clerk) allocations() [2]float64 {
	c.t.Helper()
	var sums [2]float64
	for _, controller := range c.cluster.controllers {
		text, err := controller.Metrics()
		if err != nil {
			c.t.Fatal(err)
		}
		for index, name := range []string{"pinhole_controller_port_searches_total", `pinhole_controller_changes_total{change="Found"}`} {
			for line := range strings.Lines(text) {
				var value float64
				if rest, found := strings.CutPrefix(line, name+" "); found {
					if _, err := fmt.Sscan(rest, &value); err != nil {
						c.t.Fatal(err)
					}
					sums[index] += value
				}
			}
		}
	}
	return sums
}

func TestAFixedPortIsTheNextPodsOfTheSameName(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "kept")
	c.must(http.MethodPost, poolsPath, natPool("kept", object{
		"addresses": []string{"198.51.100.44"}, "ports": []object{{"first": 32000, "last": 32099}}, "namespaces": object{"names": []string{"kept"}},
		"retention": object{"policy": "TTL", "ttlSeconds": 3600},
	}), nil)
	const ports = "fixed:7777,fixed:7777/udp"
	c.applied(workload("StatefulSet", "lobby", expose(ports)))
	var stored struct{ Metadata struct{ UID string } }
	c.must(http.MethodGet, "/apis/apps/v1/namespaces/kept/statefulsets/lobby", nil, &stored)
	replica := func(node string) object {
		pod := fromPool("lobby-0", ports, "kept")
		pod["metadata"].(object)["ownerReferences"] = []object{{
			"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "lobby", "uid": stored.Metadata.UID, "controller": true,
		}}
		if node != "" {
			pod["spec"].(object)["nodeName"] = node
		}
		return pod
	}
	create := func(pod object) gatedPod {
		t.Helper()
		if code, said := c.create("", pod); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
		return c.letGo("lobby-0")
	}
	bound := func(uid string) {
		t.Helper()
		if err := lab.Poll(patience, func() error {
			for name, claim := range c.claims("198.51.100.44") {
				if claim.Spec.State != "Bound" || claim.Spec.PodUID != uid || claim.Spec.Retention.TTLSeconds != 3600 {
					return fmt.Errorf("the claim %s is %v", name, claim)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	first := create(replica(""))
	bound(first.Metadata.UID)
	c.must(http.MethodDelete, c.podsPath()+"/lobby-0", object{"gracePeriodSeconds": 0}, nil)
	bound("")
	second := create(replica("node-7"))
	bound(second.Metadata.UID)
	if before, after := first.told(t), second.told(t); len(after) != 2 || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the pod had %v, and the next one of its name has %v", before, after)
	}
	if claims := c.claims("198.51.100.44"); len(claims) != 2 {
		t.Errorf("the claims are %v", claims)
	}

	c.refused(workload("Deployment", "web", expose(ports)), "each pod of a Deployment has another one; use a StatefulSet, or a bare pod")
}

func TestAPodThatAsksInTheWordsOfACKGetsItsPorts(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "dnat")
	c.must(http.MethodPost, poolsPath, natPool("dnat", object{
		"addresses": []string{"198.51.100.45", "198.51.100.46"}, "ports": []object{{"first": 512, "last": 1024}}, "namespaces": object{"names": []string{"dnat"}},
	}), nil)
	const dnat = "k8s.aliyun.com/pod-dnat"
	pod := func(name string, words notes) object {
		pod := asking(name, "")
		pod["metadata"].(object)["annotations"] = words
		return pod
	}
	fixed := notes{dnat: "true", dnat + "-expose-port": "80,443", dnat + "-fixed": "true", "pinhole.dev/pool": "dnat"}
	create := func(name string, words notes) []endpoint {
		t.Helper()
		if code, said := c.create("", pod(name, words)); code != http.StatusCreated {
			t.Fatalf("HTTP %d: %s", code, said)
		}
		return c.letGo(name).told(t)
	}
	told := create("web", fixed)
	if len(told) != 2 || told[0].Address != told[1].Address || told[0].TargetPort != 80 || told[1].TargetPort != 443 {
		t.Errorf("the pod was told %v", told)
	}
	for _, one := range told {
		if one.Protocol != "TCP" || one.Port < 512 || 1024 < one.Port {
			t.Errorf("%v is not of the pool", one)
		}
	}
	c.eventuallyShown("web", fmt.Sprintf("web %s:%d/tcp +1", told[0].Address, told[0].Port))
	c.must(http.MethodDelete, c.podsPath()+"/web", object{"gracePeriodSeconds": 0}, nil)
	if again := create("web", fixed); fmt.Sprint(again) != fmt.Sprint(told) {
		t.Errorf("the pod had %v, and the next one of its name has %v", told, again)
	}
	udp := create("dns", notes{dnat: "", dnat + "-expose-port": "53", dnat + "-expose-protocol": "udp"})
	if len(udp) != 1 || udp[0].Protocol != "UDP" || udp[0].TargetPort != 53 {
		t.Errorf("the pod was told %v", udp)
	}
	if code, said := c.create("", pod("quiet", notes{dnat: "false", dnat + "-expose-port": "80"})); code != http.StatusCreated {
		t.Errorf("HTTP %d: %s", code, said)
	}
	if gates := c.gated("quiet").Spec.SchedulingGates; len(gates) != 0 {
		t.Errorf("a pod that does not ask has the gates %v", gates)
	}
	for field, words := range map[string]notes{
		"-expose-port]: is missing; list the ports of the pod, as in \"80,443\"": {dnat: "true"},
		"-expose-port][0]: http: is not a port; write a number from 1 to 65535":  {dnat: "true", dnat + "-expose-port": "http"},
		"]: pinhole.dev/expose is given too":                                     {dnat: "true", dnat + "-expose-port": "80", "pinhole.dev/expose": "auto:80"},
	} {
		if code, said := c.create("?dryRun=All", pod("refused", words)); code != http.StatusUnprocessableEntity ||
			!strings.Contains(said, "metadata.annotations["+dnat+field) {
			t.Errorf("HTTP %d: %s\nexpected %s", code, said, field)
		}
	}
}

func TestTheExamplesOfPortsFromPoolsAreAccepted(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "examples-of-pools")
	for _, name := range []string{"automatic-ports", "fixed-ports", "pod-dnat"} {
		result, err := c.cluster.Kubectl("", "apply", "-f", "../../examples/claims/"+name+".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if !result.Succeeded {
			t.Error(result.Stdout + result.Stderr)
		}
	}
}
