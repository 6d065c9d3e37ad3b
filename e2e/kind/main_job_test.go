package kind

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// The mail server of examples/, with a server behind each port that tells whom it sees.
const mailServer = `apiVersion: v1
kind: Pod
metadata:
  name: mail
  labels: {app: mail}
  annotations:
    pinhole.dev/nat: |
      {"entries": [
        {"srcPort": 25,  "dstPort": 25},
        {"srcPort": 143, "dstPort": 143},
        {"srcPort": 587, "dstPort": 587}
      ]}
spec:
  containers:
    - {name: smtp, image: %[1]s, args: [netexec, --http-port=25, --udp-port=-1]}
    - {name: imap, image: %[1]s, args: [netexec, --http-port=143, --udp-port=-1]}
    - {name: submission, image: %[1]s, args: [netexec, --http-port=587, --udp-port=-1]}
`

func TestAMailServerIsReachedFromOutsideAndSeesTheClientsAddress(t *testing.T) {
	s := newScene(t, "mail")
	s.apply(fmt.Sprintf(mailServer, agnhost))
	s.ready("app=mail")
	mail := s.onlyPod("app=mail")
	node, outside := addressesOf(t, mail.Spec.NodeName), addressesOf(t, client)
	for _, port := range []int{25, 143, 587} {
		if seen := hostOf(t, reaches(t, node.v4, port, "clientip")); seen != outside.v4 {
			t.Errorf("port %d: the pod saw %s, the client is %s", port, seen, outside.v4)
		}
	}
	if seen := s.clientSees("mail", "smtp", outside.v4); seen != node.v4 {
		t.Errorf("the client outside saw %s, the mail server's address is %s", seen, node.v4)
	}

	s.kubectl("delete", "pod", "mail", "--grace-period=1")
	for _, port := range []int{25, 143, 587} {
		unreachable(t, node.v4, port)
	}
}

// clientSees tells the address with which a pod's connection arrives at the client outside.
func (s scene) clientSees(pod, container, address string) string {
	s.t.Helper()
	return s.sees(pod, container, address, clientPort)
}

// sees tells the address with which a pod's connection arrives at a server that tells whom it sees.
func (s scene) sees(pod, container, address string, port int) string {
	s.t.Helper()
	return hostOf(s.t, strings.TrimSpace(s.kubectl("exec", pod, "--container", container, "--",
		"curl", "--silent", "--show-error", "--max-time", "5", fmt.Sprintf("http://%s/clientip", hostPort(address, port)))))
}

// On the node's first address every pod would be seen, with or without Pinhole.
func TestAPodOnAnotherAddressOfItsNodeIsReachedThereAndSendsFromIt(t *testing.T) {
	s := newScene(t, "second-address")
	first, outside := addressesOf(t, worker).v4, addressesOf(t, client).v4
	second := first[:strings.LastIndex(first, ".")] + ".240"
	t.Cleanup(func() { onNode(t, worker, "ip address del "+second+"/32 dev eth0") })
	onNode(t, worker, "ip address add "+second+"/32 dev eth0")
	s.apply(webPod("web", "pinhole.dev/expose", second+":8029:8080", atNode(worker)))
	s.apply(webPod("other", "example.com/note", "none", atNode(worker)))
	s.ready("app in (web, other)")
	if seen := hostOf(t, reaches(t, second, 8029, "clientip")); seen != outside {
		t.Errorf("the pod saw %s, the client is %s", seen, outside)
	}
	unreachable(t, first, 8029)
	for pod, address := range map[string]string{"web": second, "other": first} {
		if seen := s.clientSees(pod, "web", outside); seen != address {
			t.Errorf("from the pod %s the client outside saw %s, expected %s", pod, seen, address)
		}
	}
}

func TestAPodIsReachedOverIPv6WithTheClientsAddress(t *testing.T) {
	s := newScene(t, "ipv6")
	s.apply(webPod("web", "pinhole.dev/expose", "8025:8080"))
	s.ready("app=web")
	node, outside := addressesOf(t, s.onlyPod("app=web").Spec.NodeName), addressesOf(t, client)
	for _, each := range []struct{ node, client string }{{node.v4, outside.v4}, {node.v6, outside.v6}} {
		if seen := hostOf(t, reaches(t, each.node, 8025, "clientip")); seen != each.client {
			t.Errorf("at %s the pod saw %s, the client is %s", each.node, seen, each.client)
		}
	}
	if seen := s.clientSees("web", "web", outside.v6); seen != node.v6 {
		t.Errorf("the client outside saw %s, the node's address is %s", seen, node.v6)
	}
}

func TestUDPIsReachedFromOutsideWithTheClientsAddress(t *testing.T) {
	s := newScene(t, "udp")
	s.apply(webPod("dns", "pinhole.dev/expose", "5353:8081/udp"))
	s.ready("app=dns")
	node := addressesOf(t, s.onlyPod("app=dns").Spec.NodeName)
	// This process is outside the cluster, too.
	for _, address := range node.served() {
		eventually(t, 20*time.Second, address+" answers by UDP", func() error {
			flow, err := net.Dial("udp", hostPort(address, 5353))
			if err != nil {
				return err
			}
			defer flow.Close()
			seen, err := askByUDP(flow, "clientip")
			if err != nil {
				return err
			}
			if seen != flow.LocalAddr().String() {
				t.Errorf("the pod saw %s, the client is %s", seen, flow.LocalAddr())
			}
			return nil
		})
	}
}

// askByUDP sends a question, and tells what comes back within a second.
func askByUDP(flow net.Conn, question string) (string, error) {
	if err := flow.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := flow.Write([]byte(question)); err != nil {
		return "", err
	}
	answer := make([]byte, 200)
	count, err := flow.Read(answer)
	return strings.TrimSpace(string(answer[:count])), err
}

func TestDefaultsAreVisibleOnThePod(t *testing.T) {
	s := newScene(t, "defaults")
	s.apply(webPod("web", "pinhole.dev/expose", "8026:8080"))
	web := s.onlyPod("app=web")
	if web.Metadata.Labels["pinhole.dev/enabled"] != "true" {
		t.Errorf("the labels are %v", web.Metadata.Labels)
	}
	var effective struct{ Entries []map[string]any }
	if err := json.Unmarshal([]byte(web.Metadata.Annotations["pinhole.dev/effective"]), &effective); err != nil || len(effective.Entries) != 1 {
		t.Fatalf("pinhole.dev/effective is %q (%v)", web.Metadata.Annotations["pinhole.dev/effective"], err)
	}
	for key, value := range map[string]any{"srcPort": 8026.0, "dstPort": 8080.0, "proto": "tcp", "ifaceAuto": true} {
		if effective.Entries[0][key] != value {
			t.Errorf("%s is %v, expected %v", key, effective.Entries[0][key], value)
		}
	}
	if web.Metadata.Annotations["pinhole.dev/expose"] != "8026:8080" {
		t.Errorf("what the user wrote became %q", web.Metadata.Annotations["pinhole.dev/expose"])
	}
}

// On two nodes that take pods there is room for two holders of a port.
func TestPodsThatAskToBeSpreadGetTheirPortOnNodesOfTheirOwn(t *testing.T) {
	s := newScene(t, "spread")
	other := newScene(t, "spread-other")
	spread := func(name string) string {
		return strings.Replace(webPod(name, "pinhole.dev/expose", "8034:8080"), "annotations: {", `annotations: {pinhole.dev/spread: "true", `, 1)
	}
	s.apply(spread("first"))
	s.ready("app=first")
	other.apply(spread("second"))
	other.ready("app=second")
	first, second := s.onlyPod("app=first").Spec.NodeName, other.onlyPod("app=second").Spec.NodeName
	if first == second {
		t.Fatalf("both run on %s", first)
	}
	for node, name := range map[string]string{first: "first", second: "second"} {
		if answer := reaches(t, addressesOf(t, node).v4, 8034, "hostname"); answer != name {
			t.Errorf("on %s %s answers", node, answer)
		}
	}

	s.apply(webPod("third", "pinhole.dev/expose", "8034:8080"))
	eventually(t, 30*time.Second, "who does not ask finds no node either, and is told", func() error {
		if events := s.kubectl("get", "events", "--output", "name", "--field-selector",
			"involvedObject.name=third,reason=FailedScheduling"); events == "" {
			return fmt.Errorf("no event says that it was not scheduled; it is on %q", s.onlyPod("app=third").Spec.NodeName)
		}
		return nil
	})
	s.kubectl("delete", "pod", "first", "--grace-period=1")
	s.ready("app=third")
	if answer := reaches(t, addressesOf(t, first).v4, 8034, "hostname"); answer != "third" {
		t.Errorf("%s answers", answer)
	}
}

func TestARefusalIsReadAtApply(t *testing.T) {
	s := newScene(t, "refusals")
	other := newScene(t, "refusals-other")
	node := addressesOf(t, worker)
	held := node.v4 + ":8027:8080"
	other.apply(webPod("holder", "pinhole.dev/expose", held))
	for _, each := range []struct{ name, manifest, says string }{
		{"a pod with a restricted port", webPod("web", "pinhole.dev/expose", "22"), "metadata.annotations[pinhole.dev/expose][0]: 22/tcp: is restricted in this cluster"},
		{"a Deployment with a restricted port", webDeployment("web", "pinhole.dev/expose", "22", 1),
			"spec.template.metadata.annotations[pinhole.dev/expose][0]"},
		{"a port that the node itself needs", webPod("web", "pinhole.dev/expose", "10250"), "10250"},
		{"a pod with a port of another namespace", webPod("web", "pinhole.dev/expose", held),
			"is held by Pod refusals-other/holder"},
		{"a Deployment with a port of another namespace", webDeployment("web", "pinhole.dev/expose", held, 1),
			"is held by Pod refusals-other/holder"},
		{"a misspelt key", webPod("web", "pinhole.dev/nat", `{"entries":[{"srcport":25,"dstPort":25}]}`), `did you mean "srcPort"?`},
	} {
		if said := s.refused(each.manifest); !strings.Contains(said, each.says) {
			t.Errorf("%s: the user reads\n%s\nwithout\n%s", each.name, said, each.says)
		}
	}
	if stored := s.kubectl("get", "pods,deployments", "--output", "name"); stored != "" {
		t.Errorf("refused, but stored: %s", stored)
	}
}

func TestAPortIsFreeOnceItsHolderIsGone(t *testing.T) {
	s := newScene(t, "freed")
	held := addressesOf(t, worker).v4 + ":8028:8080"
	s.apply(webPod("first", "pinhole.dev/expose", held))
	s.refused(webPod("second", "pinhole.dev/expose", held))
	s.kubectl("delete", "pod", "first", "--grace-period=1")
	s.apply(webPod("second", "pinhole.dev/expose", held, atNode(worker)))
	s.ready("app=second")
	if answer := reaches(t, addressesOf(t, worker).v4, 8028, "hostname"); answer != "second" {
		t.Errorf("%s answers", answer)
	}
}

func TestTheWebhooksReplicasRunOnDifferentNodes(t *testing.T) {
	on := map[string]int{}
	for _, each := range (scene{t, system}).pods("app.kubernetes.io/component=webhook") {
		if each.Metadata.DeletionTimestamp == "" {
			on[each.Spec.NodeName]++
		}
	}
	if len(on) != 2 {
		t.Errorf("so many replicas run on each node: %v", on)
	}
}
