package kind

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPodsOfEveryWorkloadKindAreReached(t *testing.T) {
	s := newScene(t, "kinds")
	address := addressesOf(t, worker).v4
	for index, each := range []struct{ kind, head string }{
		{"StatefulSet", "apiVersion: apps/v1\nkind: StatefulSet"},
		{"DaemonSet", "apiVersion: apps/v1\nkind: DaemonSet"},
		{"Job", "apiVersion: batch/v1\nkind: Job"},
	} {
		name, port := strings.ToLower(each.kind), 8040+index
		selector := fmt.Sprintf("  selector: {matchLabels: {app: %s}}\n", name)
		specification := []string{atNode(worker)}
		if each.kind == "Job" {
			// A Job makes its own selector, and its pods do not restart for ever.
			selector, specification = "", append(specification, "restartPolicy: Never")
		}
		s.apply(fmt.Sprintf(`%s
metadata: {name: %s}
spec:
%s  template:
    metadata:
      labels: {app: %s}
      annotations: {pinhole.dev/expose: "%d:8080"}
%s`, each.head, name, selector, name, port, indent(webSpec(specification...), 4)))
		s.ready("app=" + name)
		if answer := reaches(t, address, port, "hostname"); !strings.HasPrefix(answer, name) {
			t.Errorf("the %s's port is answered by %s", each.kind, answer)
		}
	}
}

func TestADrainedNodesPodIsReachedWhereItGoes(t *testing.T) {
	s := newScene(t, "drained")
	s.apply(webDeployment("web", "pinhole.dev/expose", "8045:8080", 1, atNode(worker)))
	s.ready("app=web")
	reaches(t, addressesOf(t, worker).v4, 8045, "hostname")
	s.kubectl("patch", "deployment", "web", "--type=json", "--patch",
		`[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]`)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")

	from := s.servingPod().Spec.NodeName
	t.Cleanup(func() { kubectl(t, "", "uncordon", from) })
	kubectl(t, "", "drain", from, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	to := s.servingPod().Spec.NodeName
	if to == from {
		t.Fatalf("the pod is still on %s", from)
	}
	reaches(t, addressesOf(t, to).v4, 8045, "hostname")
	unreachable(t, addressesOf(t, from).v4, 8045)
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
	address := addressesOf(t, worker).v4
	s.apply(webPod("web", "pinhole.dev/expose", "8046:8080", atNode(worker)))
	s.ready("app=web")
	reaches(t, address, 8046, "hostname")
	s.keepsFlowing(address, 8046, func() {
		onNode(t, worker, "systemctl restart kubelet")
		// The kubelet reports every pod as not ready once, then as it is.
		time.Sleep(10 * time.Second)
		s.ready("app=web")
	})
}

func TestARestartOfTheAPIServerChangesNothingThatFlows(t *testing.T) {
	s := newScene(t, "api-server")
	address := addressesOf(t, worker).v4
	s.apply(webPod("web", "pinhole.dev/expose", "8047:8080", atNode(worker)))
	s.ready("app=web")
	reaches(t, address, 8047, "hostname")
	s.keepsFlowing(address, 8047, func() {
		onNode(t, "pinhole-control-plane", "kill -9 $(pidof kube-apiserver)")
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
