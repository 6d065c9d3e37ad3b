package kind

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPodsOfEveryWorkloadKindAreReached(t *testing.T) {
	s := newScene(t, "kinds")
	address := addressesOf(t, worker).v4
	for index, each := range workloads {
		port := 8040 + index
		s.apply(each.manifest(port, atNode(worker)))
		s.ready("app=" + each.name())
		if answer := reaches(t, address, port, "hostname"); !strings.HasPrefix(answer, each.name()) {
			t.Errorf("the %s's port is answered by %s", each.kind, answer)
		}
	}
}

func TestADrainedNodesPodIsReachedWhereItGoes(t *testing.T) {
	s := newScene(t, "drained")
	s.apply(webDeployment("web", "pinhole.dev/expose", "8045:8080", 1, atNode(worker)))
	s.ready("app=web")
	reaches(t, addressesOf(t, worker).v4, 8045, "hostname")
	// Its own selector would keep it from leaving. It is not to leave before the drain, either.
	t.Cleanup(func() { kubectl(t, "", "uncordon", worker, otherWorker) })
	kubectl(t, "", "cordon", otherWorker)
	s.kubectl("patch", "deployment", "web", "--type=json", "--patch",
		`[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]`)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	kubectl(t, "", "uncordon", otherWorker)

	kubectl(t, "", "drain", worker, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	if now := s.servingPod().Spec.NodeName; now != otherWorker {
		t.Fatalf("the pod is on %s", now)
	}
	reaches(t, addressesOf(t, otherWorker).v4, 8045, "hostname")
	unreachable(t, addressesOf(t, worker).v4, 8045)
}

// servingPod is the pod that is not on its way out.
func (s scene) servingPod() pod {
	s.t.Helper()
	var serving []pod
	for _, each := range s.pods("app=web") {
		if each.Metadata.DeletionTimestamp == "" {
			serving = append(serving, each)
		}
	}
	if len(serving) != 1 {
		s.t.Fatalf("%d pods serve, expected one", len(serving))
	}
	return serving[0]
}

func TestARestartOfTheKubeletChangesNothingThatFlows(t *testing.T) {
	s := newScene(t, "kubelet")
	address := s.serves(8046)
	s.keepsFlowing(address, 8046, func() {
		onNode(t, worker, "systemctl restart kubelet")
		// The kubelet reports every pod as not ready once, then as it is.
		time.Sleep(10 * time.Second)
		s.ready("app=web")
	})
}

func TestARestartOfTheAPIServerChangesNothingThatFlows(t *testing.T) {
	s := newScene(t, "api-server")
	address := s.serves(8047)
	s.keepsFlowing(address, 8047, func() {
		onNode(t, control, "kill -9 $(pidof kube-apiserver)")
		eventually(t, 120*time.Second, "the API server answers again", func() error {
			_, err := tryKubectl("", "get", "--raw", "/readyz")
			return err
		})
	})
	eventually(t, 60*time.Second, "a new pod is admitted", func() error {
		output, err := s.tryApply(webPod("later", "pinhole.dev/expose", "8048:8080", atNode(worker)))
		if err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	})
	s.ready("app=later")
	reaches(t, address, 8048, "hostname")
}

// keepsFlowing fails when, while something happens, a new connection fails or an open one breaks.
func (s scene) keepsFlowing(address string, port int, happens func()) {
	s.t.Helper()
	open := converse(s.t, address, port)
	before := open.ask(s.t)
	calls := keepCalling(address, port)
	happens()
	if after := open.ask(s.t); after != before {
		s.t.Errorf("the open connection answered %q, then %q", before, after)
	}
	made := calls.finish()
	if made.answered == 0 || len(made.failures) != 0 {
		s.t.Errorf("%d connections were answered, %d failed: %s", made.answered, len(made.failures), strings.Join(made.failures, "\n"))
	}
}

func TestARestartOfAllNodesBringsEveryPortBack(t *testing.T) {
	s := newScene(t, "restart")
	address := addressesOf(t, worker).v4
	s.apply(webDeployment("web", "pinhole.dev/expose", "8049:8080", 1, atNode(worker)))
	s.ready("app=web")
	reaches(t, address, 8049, "hostname")
	// As after a power cut: nothing is told to end.
	if output, err := command("", "docker", append([]string{"restart", "--time", "0"}, nodes...)...); err != nil {
		t.Fatalf("docker restart: %v\n%s", err, output)
	}
	if now := addressesOf(t, worker).v4; now != address {
		t.Fatalf("%s came back with the address %s, it had %s", worker, now, address)
	}
	eventually(t, 180*time.Second, "the pod runs again and is reached", func() error {
		_, err := fetchFromClient(address, 8049, "hostname")
		return err
	})
	eventually(t, 120*time.Second, "all of Pinhole is ready", func() error {
		return installed()
	})
	// It refuses and removes as before.
	refusesRestrictedPorts(t)
	s.kubectl("delete", "deployment", "web", "--cascade=foreground")
	unreachable(t, address, 8049)
}

// refusesRestrictedPorts waits until the webhook says so: the API server finds the way to replicas that are ready a little later.
func refusesRestrictedPorts(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "a restricted port is refused", func() error {
		said, err := tryKubectl(webPod("ssh", "pinhole.dev/expose", "22"), "--namespace", "default", "apply", "--dry-run=server", "--filename=-")
		if err == nil || !strings.Contains(said, "is restricted in this cluster") {
			return fmt.Errorf("the user reads\n%s", said)
		}
		return nil
	})
}

// installed tells what of Pinhole is not ready, or has still to end: a replica from before answers what comes over its
// connections until then.
func installed() error {
	for _, part := range []string{"deployment/pinhole-webhook", "daemonset/pinhole-agent"} {
		if output, err := tryKubectl("", "--namespace", system, "rollout", "status", part, "--timeout=20s"); err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
	}
	ending, err := tryKubectl("", "--namespace", system, "get", "pods", "--output",
		"jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name} {end}")
	if err == nil && ending != "" {
		err = errors.New("still ending: " + ending)
	}
	return err
}

func TestAFirewallThatDropsForwardedTrafficIsToldWithItsFix(t *testing.T) {
	s := newScene(t, "firewall")
	setAgents(t, "PINHOLE_RESYNC=5s")
	t.Cleanup(func() { setAgents(t, "PINHOLE_RESYNC-") })
	address := s.serves(8053)
	told := metricOf(t, worker, `pinhole_agent_condition{kind="ForwardBlocked"}`)
	if told != "0" && told != "" {
		t.Fatalf("before, the metric is %s", told)
	}
	t.Cleanup(func() { onNode(t, worker, "nft delete table inet firewall 2>/dev/null || true") })
	onNode(t, worker, "nft 'table inet firewall { chain routed { type filter hook forward priority 0; policy drop; }; }'")
	if answer, err := fetchFromClient(address, 8053, "hostname"); err == nil {
		t.Errorf("%s answers: the firewall drops nothing", answer)
	}
	eventually(t, 30*time.Second, "the metric tells", func() error {
		if now := metricOf(t, worker, `pinhole_agent_condition{kind="ForwardBlocked"}`); now != "1" {
			return fmt.Errorf("it is %q", now)
		}
		return nil
	})
	logs := kubectl(t, "", "--namespace", system, "logs", agentOn(t, worker))
	fix := regexp.MustCompile("`(nft insert rule [^`]+)`").FindStringSubmatch(logs)
	if fix == nil {
		t.Fatalf("the agent's log names no command:\n%s", logs)
	}
	// What it says works.
	onNode(t, worker, fix[1])
	reaches(t, address, 8053, "hostname")
	onNode(t, worker, "nft delete table inet firewall")
	eventually(t, 30*time.Second, "the metric takes it back", func() error {
		if now := metricOf(t, worker, `pinhole_agent_condition{kind="ForwardBlocked"}`); now != "0" {
			return fmt.Errorf("it is %q", now)
		}
		return nil
	})
}

// metricOf reads a metric of a node's agent, which by default serves it to its node alone; nothing when it has none yet.
func metricOf(t *testing.T, node, name string) string {
	t.Helper()
	for line := range strings.Lines(onNode(t, node, `printf 'GET /metrics HTTP/1.0\r\n\r\n' | nc -w 5 127.0.0.1 8484`)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
