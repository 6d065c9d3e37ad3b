package kind

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestARollingUpdateLosesNoConnection(t *testing.T) {
	s := newScene(t, "rolling")
	address := addressesOf(t, worker).v4
	s.apply(webDeployment("web", "pinhole.dev/expose", "8030:8080", 1, atNode(worker)))
	s.ready("app=web")
	first := reaches(t, address, 8030, "hostname")

	calls := keepCalling(address, 8030)
	for round := range 2 {
		s.kubectl("patch", "deployment", "web", "--patch",
			fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"example.com/round":"%d"}}}}}`, round))
		s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	}
	last := s.lastPod("app=web")
	made := calls.finish()
	if len(made.failures) != 0 {
		t.Errorf("%d of %d connections failed, the first: %s", len(made.failures), made.answered+len(made.failures), made.failures[0])
	}
	if len(made.answers) != 3 || made.answers[0] != first || made.answers[2] != last {
		t.Errorf("answers came from %v, expected three pods in turn, from %s to %s", made.answers, first, last)
	}
}

func TestARollingUpdateLeavesAFlowOfUDPWithItsPodWhileThatServes(t *testing.T) {
	s := newScene(t, "rolling-udp")
	address := addressesOf(t, worker).v4
	s.apply(webDeployment("dns", "pinhole.dev/expose", "8035:8081/udp", 1, atNode(worker)))
	s.ready("app=dns")
	newFlow := func() net.Conn {
		flow, err := net.Dial("udp", hostPort(address, 8035))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flow.Close() })
		return flow
	}
	var flow net.Conn
	var first string
	eventually(t, 20*time.Second, "it is reached by UDP", func() (err error) {
		flow = newFlow()
		first, err = askByUDP(flow, "hostname")
		return err
	})

	s.kubectl("rollout", "restart", "deployment/dns")
	eventually(t, 60*time.Second, "new flows go to the new pod", func() error {
		answer, err := askByUDP(newFlow(), "hostname")
		if still, broke := askByUDP(flow, "hostname"); broke != nil || still != first {
			t.Fatalf("the flow that was open was answered by %q (%v), expected %s", still, broke, first)
		}
		if err == nil && answer == first {
			err = fmt.Errorf("%s answers", answer)
		}
		return err
	})
	last := s.lastPod("app=dns")
	eventually(t, 20*time.Second, "the flow goes to the pod that is left", func() error {
		answer, err := askByUDP(flow, "hostname")
		if err == nil && answer != last {
			err = fmt.Errorf("%s answers", answer)
		}
		return err
	})
}

func TestAPodThatMovesTakesItsPortsAlong(t *testing.T) {
	s := newScene(t, "moves")
	from, to := addressesOf(t, worker).v4, addressesOf(t, otherWorker).v4
	s.apply(webDeployment("web", "pinhole.dev/expose", "8031:8080", 1, atNode(worker)))
	s.ready("app=web")
	reaches(t, from, 8031, "hostname")
	s.apply(webDeployment("web", "pinhole.dev/expose", "8031:8080", 1, atNode(otherWorker)))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	reaches(t, to, 8031, "hostname")
	unreachable(t, from, 8031)
}

func TestAKilledAgentChangesNothingThatFlows(t *testing.T) {
	s := newScene(t, "agent-killed")
	address := s.serves(8032)

	s.keepsFlowing(address, 8032, func() {
		agent := agentOn(t, worker)
		kubectl(t, "", "--namespace", system, "delete", "pod", agent, "--grace-period=0", "--force")
		eventually(t, 60*time.Second, "another agent is ready", func() error {
			if now := agentOn(t, worker); now == agent || now == "" {
				return fmt.Errorf("the agent is %q", now)
			}
			return nil
		})
		time.Sleep(2 * time.Second)
	})
	s.kubectl("delete", "pod", "web", "--grace-period=1")
	unreachable(t, address, 8032)
}

// agentOn names the ready agent of a node; nothing when there is none.
func agentOn(t *testing.T, node string) string {
	t.Helper()
	return strings.TrimSpace(kubectl(t, "", "--namespace", system, "get", "pods", "--selector", "app.kubernetes.io/component=agent",
		"--field-selector", "spec.nodeName="+node, "--output",
		`jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.metadata.name}{end}`))
}

// Whichever of the two it uses: its tables of nftables, or the way into its chains of iptables.
func TestAFlushedFirewallIsRepairedWithinSeconds(t *testing.T) {
	s := newScene(t, "flushed")
	t.Cleanup(func() {
		// kube-proxy does not notice: its own rules come back with its pod.
		kubectl(t, "", "--namespace", "kube-system", "delete", "pod", "--selector", "k8s-app=kube-proxy",
			"--field-selector", "spec.nodeName="+worker)
		kubectl(t, "", "--namespace", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=60s")
	})
	address := s.serves(8033)

	// The agent stands still meanwhile: it may be about to look. Its rules are in one of the two places.
	agent := "$(pgrep --full '^/usr/bin/pinhole agent')"
	onNode(t, worker, "kill -STOP "+agent+" && iptables -w -t nat -F PREROUTING && iptables -w -F; nft delete table ip PINHOLE || true")
	if answer, err := fetchFromClient(address, 8033, "hostname"); err == nil {
		t.Errorf("%s answers although the rules are gone: the flush showed nothing", answer)
	}
	onNode(t, worker, "kill -CONT "+agent)
	if answer := reaches(t, address, 8033, "hostname"); answer != "web" {
		t.Errorf("%s answers", answer)
	}
}

// setAgents sets (NAME=VALUE) or unsets (NAME-) a variable of all agents, and waits for them.
func setAgents(t *testing.T, variable string) {
	t.Helper()
	kubectl(t, "", "--namespace", system, "set", "env", "daemonset/pinhole-agent", variable)
	kubectl(t, "", "--namespace", system, "rollout", "status", "daemonset/pinhole-agent", "--timeout=120s")
}
