package kind

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestWithoutAWebhookPlainPodsStartDeletesPassAndAnnotatedPodsAreRefused(t *testing.T) {
	s := newScene(t, "webhook-gone")
	address := s.serves(8034)
	s.apply(webPod("old", "pinhole.dev/expose", "8035:8080", atNode(worker)))
	s.ready("app=old")
	reaches(t, address, 8035, "hostname")
	withoutWebhook(t)

	s.apply(webPod("plain", "example.com/note", "none"))
	s.ready("app=plain")
	said := s.refused(webPod("annotated", "pinhole.dev/expose", "8036:8080"))
	// Which webhook gave no answer, and where it was looked for.
	for _, part := range []string{`failed calling webhook "pods.pinhole.dev"`, "pinhole-webhook.pinhole-system.svc", "connection refused"} {
		if !strings.Contains(said, part) {
			t.Errorf("the user reads\n%s\nwithout %q", said, part)
		}
	}
	s.kubectl("label", "pod", "web", "team=mail")
	s.kubectl("delete", "pod", "old", "--grace-period=1")
	unreachable(t, address, 8035)
	if answer := reaches(t, address, 8034, "hostname"); answer != "web" {
		t.Errorf("%s answers", answer)
	}

	webhookReturns(t)
	s.apply(webPod("annotated", "pinhole.dev/expose", "8036:8080", atNode(worker)))
	s.ready("app=annotated")
	reaches(t, address, 8036, "hostname")
}

// As an autoscaler does it, which reads no refusal and does not ask again.
func TestScalingWorksWithoutAWebhookAndWhatItHeldUpStartsByItself(t *testing.T) {
	s := newScene(t, "scaled")
	address := addressesOf(t, worker).v4
	s.apply(webDeployment("web", "pinhole.dev/expose", "8037:8080", 2, atNode(worker)))
	s.apply(webDeployment("shrinking", "pinhole.dev/expose", "8038:8080", 2, atNode(worker)))
	s.ready("app in (web, shrinking)")
	reaches(t, address, 8037, "hostname")
	withoutWebhook(t)

	s.kubectl("scale", "deployment", "web", "--replicas=3")
	s.kubectl("scale", "deployment", "shrinking", "--replicas=0")
	s.left("app=shrinking", 0)
	unreachable(t, address, 8038)
	s.refusedPodOf("ReplicaSet/web-")
	if running := len(s.pods("app=web")); running != 2 {
		t.Errorf("%d pods, expected the two that ran before", running)
	}
	reaches(t, address, 8037, "hostname")

	webhookReturns(t)
	s.left("app=web", 3)
	s.ready("app=web")
}

func TestWorkloadsThatWereHeldUpStartByThemselvesOnceTheWebhookIsBack(t *testing.T) {
	s := newScene(t, "held-up")
	address := addressesOf(t, worker).v4
	names := []string{}
	for index, each := range workloads {
		s.apply(each.manifest(8063+index, atNode(worker)))
		names = append(names, each.name())
	}
	everyOne := "app in (" + strings.Join(names, ", ") + ")"
	s.ready(everyOne)
	withoutWebhook(t)

	// Each loses its pod and wants another one.
	s.kubectl("delete", "pods", "--selector", everyOne, "--grace-period=1")
	for _, each := range workloads {
		s.refusedPodOf(each.kind + "/" + each.name())
	}
	webhookReturns(t)
	for index, name := range names {
		s.left("app="+name, 1)
		s.ready("app=" + name)
		if answer := reaches(t, address, 8063+index, "hostname"); !strings.HasPrefix(answer, name) {
			t.Errorf("port %d is answered by %s", 8063+index, answer)
		}
	}
}

// refusedPodOf waits until a controller tells that a pod of its object (KIND/NAME, or the beginning of that) is refused.
func (s scene) refusedPodOf(object string) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, "an event tells that a pod of "+object+" is refused", func() error {
		events := s.kubectl("get", "events", "--field-selector", "reason=FailedCreate", "--output",
			`jsonpath={range .items[*]}{.involvedObject.kind}/{.involvedObject.name}: {.message}{"\n"}{end}`)
		for line := range strings.Lines(events) {
			if strings.HasPrefix(line, object) && strings.Contains(line, "pods.pinhole.dev") {
				return nil
			}
		}
		return fmt.Errorf("the events say %q", events)
	})
}

// left waits until so many pods with a label are there and none is on its way out. Controllers ask again after pauses that
// double each time.
func (s scene) left(selector string, count int) {
	s.t.Helper()
	eventually(s.t, 150*time.Second, fmt.Sprintf("%d pods %s", count, selector), func() error {
		found := s.pods(selector)
		for _, each := range found {
			if each.Metadata.DeletionTimestamp != "" {
				return fmt.Errorf("%s is on its way out", each.Metadata.Name)
			}
		}
		if len(found) != count {
			return fmt.Errorf("%d pods", len(found))
		}
		return nil
	})
}

// withoutWebhook takes every replica of the webhook away, until webhookReturns or the scenario's end.
func withoutWebhook(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { webhookReturns(t) })
	kubectl(t, "", "--namespace", system, "scale", "deployment", "pinhole-webhook", "--replicas=0")
	kubectl(t, "", "--namespace", system, "delete", "pods", "--selector", "app.kubernetes.io/component=webhook",
		"--grace-period=0", "--force")
	// The objects are gone at once, the processes a little later: till then they answer on open connections.
	for _, node := range nodes {
		eventually(t, 60*time.Second, "no webhook runs on "+node, func() error {
			if running := onNode(t, node, "crictl ps --quiet --name '^webhook$'"); running != "" {
				return fmt.Errorf("container %s runs", strings.TrimSpace(running))
			}
			return nil
		})
	}
}

func webhookReturns(t *testing.T) {
	t.Helper()
	kubectl(t, "", "--namespace", system, "scale", "deployment", "pinhole-webhook", "--replicas=2")
	kubectl(t, "", "--namespace", system, "rollout", "status", "deployment/pinhole-webhook", "--timeout=120s")
}
