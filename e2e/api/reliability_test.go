package api

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// API servers keep connections to a webhook for up to 90 s after the last call. A server that closes them earlier fails
// the call that is on its way just then. Each interval has an API server of its own, which makes no other calls.
func TestNoCallFailsHoweverLongTheConnectionWasIdle(t *testing.T) {
	t.Parallel()
	intervals := []struct{ least, most time.Duration }{
		{1900 * time.Millisecond, 2100 * time.Millisecond},
		{29 * time.Second, 31 * time.Second},
		{59 * time.Second, 61 * time.Second},
		{89 * time.Second, 91 * time.Second},
	}
	cluster, err := lab.StartCluster(lab.Options{Name: "idle", Network: 2, APIServers: len(intervals)})
	if err != nil {
		t.Fatal(err)
	}
	replica, err := cluster.StartReadyReplica()
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(6 * time.Minute)
	for server, interval := range intervals {
		t.Run(fmt.Sprintf("every %s to %s", interval.least, interval.most), func(t *testing.T) {
			t.Parallel()
			made := 0
			for pause := time.Duration(0); time.Now().Add(pause).Before(end); pause = interval.least + rand.N(interval.most-interval.least) {
				time.Sleep(pause)
				if err := cluster.CreatePod(server, lab.DefaultPods+"?dryRun=All", "idle", "192.0.2.70:80"); err != nil {
					t.Errorf("call %d: %v", made+1, err)
				}
				made++
			}
			calls, err := cluster.WebhookCalls(server)
			if err != nil {
				t.Fatal(err)
			}
			// One request, two webhooks.
			if calls.Failed != 0 || calls.Total != float64(2*made) {
				t.Errorf("the API server counts %v failed of %v calls, made were 2 x %d", calls.Failed, calls.Total, made)
			}
			t.Logf("%d requests, %v calls, %v failed", made, calls.Total, calls.Failed)
			if t.Failed() {
				t.Log(replica.LogTail())
			}
		})
	}
}

// The rest of this file shares a cluster in which the webhook comes and goes, one test after the other.
func TestWhileReplicasComeAndGo(t *testing.T) {
	t.Parallel()
	cluster, err := lab.StartCluster(lab.Options{Name: "turbulent", Network: 3, APIServers: 1, Controllers: true})
	if err != nil {
		t.Fatal(err)
	}
	turbulent := desk{t, &officeCluster{Cluster: cluster}, "default"}
	t.Run("ten rolling restarts of two replicas under load fail no call", func(t *testing.T) {
		rollingRestarts(t, cluster)
	})
	turbulent.accepted(workload("Deployment", "kept", expose("192.0.2.72:80"), "replicas: 2"))
	turbulent.accepted(pod("kept", expose("192.0.2.72:81")))
	turbulent.eventually(func() error {
		if pods := turbulent.pods(); len(pods) != 3 {
			return fmt.Errorf("there are %d pods", len(pods))
		}
		return nil
	})
	if err := cluster.StopReplicas(); err != nil {
		t.Fatal(err)
	}
	t.Run("with the webhook down only new NAT requests are refused", func(t *testing.T) {
		withTheWebhookDown(desk{t, turbulent.cluster, "default"})
	})
	t.Run("an apply while the webhook starts succeeds", func(t *testing.T) {
		applyDuringStart(desk{t, turbulent.cluster, "default"})
	})
	t.Run("an apply while the webhook cannot reach its API server is refused", func(t *testing.T) {
		applyWithoutCaches(desk{t, turbulent.cluster, "default"})
	})
	t.Run("the operator's settings are kept and explained", func(t *testing.T) {
		settings(desk{t, turbulent.cluster, "default"})
	})
}

func rollingRestarts(t *testing.T, cluster *lab.Cluster) {
	var replicas []*lab.Replica
	for range 2 {
		replica, err := cluster.StartReadyReplica()
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, replica)
	}
	traffic := cluster.StartLoad(4)
	for restart := range 10 {
		// As the shipped Deployment does it: the new one serves before the old one is asked to go.
		next, err := cluster.StartReadyReplica()
		if err != nil {
			t.Error(err)
			break
		}
		if err := replicas[0].Stop(70 * time.Second); err != nil {
			t.Errorf("restart %d: %v", restart+1, err)
		}
		replicas = append(replicas[1:], next)
	}
	summary, err := traffic.Finish()
	if err != nil {
		t.Error(err)
	}
	t.Log(summary)
	if t.Failed() {
		for _, replica := range replicas {
			t.Log(replica.LogTail())
		}
	}
}

func withTheWebhookDown(d desk) {
	d.accepted(pod("plain", nil))
	d.accepted(workload("Deployment", "plain", nil, "replicas: 1"))
	d.golden("webhook-down.txt", "# a new pod with a NAT request\n"+d.refused(pod("new", expose("192.0.2.72:90")))+
		"\n# a new Deployment with a NAT request\n"+d.refused(workload("Deployment", "new", expose("192.0.2.72:91"))))
	doctorFindsEveryReplicaDead(d)
	d.succeeds("", "label", "pod", "kept", "team=mail")
	d.succeeds("", "label", "deployment", "kept", "team=mail")
	d.succeeds("", "set", "image", "deployment/kept", "main=example.com/app:2")
	d.succeeds("", "scale", "deployment", "kept", "--replicas=1")
	d.succeeds("", "scale", "deployment", "kept", "--replicas=3")
	d.succeeds("", "delete", "pod", "kept", "--now")
	d.succeeds("", "delete", "deployment", "kept", "--now")
	d.eventually(func() error {
		for _, pod := range d.pods() {
			if strings.HasPrefix(pod.Metadata.Name, "kept") {
				return fmt.Errorf("%s is still there", pod.Metadata.Name)
			}
		}
		return nil
	})
}

// startBehindGate starts a replica that is called at once but cannot read anything from the API server yet.
func (d desk) startBehindGate() *lab.Gate {
	d.t.Helper()
	if err := d.cluster.StopReplicas(); err != nil {
		d.t.Fatal(err)
	}
	gate, err := d.cluster.NewGate(0)
	if err != nil {
		d.t.Fatal(err)
	}
	replica, err := d.cluster.StartReplica(lab.ReplicaOptions{APIServer: gate.Address, ListedWhenUnready: true})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cluster.AwaitListed(replica); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if d.t.Failed() {
			d.t.Log(replica.LogTail())
		}
	})
	// That it listens is all it can do so far.
	d.eventually(func() error { return d.cluster.Dial(replica) })
	return gate
}

func applyDuringStart(d desk) {
	gate := d.startBehindGate()
	const closed = 900 * time.Millisecond
	began := time.Now()
	time.AfterFunc(closed, gate.Open)
	d.accepted(workload("Deployment", "early", expose("192.0.2.73:80")))
	if waited := time.Since(began); waited < closed {
		d.t.Errorf("it was accepted after %s, before the webhook can have known anything", waited)
	}
}

func applyWithoutCaches(d desk) {
	gate := d.startBehindGate()
	d.golden("webhook-starting.txt", d.refused(workload("Deployment", "late", expose("192.0.2.74:80"))))
	gate.Open()
	d.eventually(func() error {
		if result := d.kubectl(workload("Deployment", "late", expose("192.0.2.74:80")), "apply", "-f", "-"); !result.Succeeded {
			return fmt.Errorf("%s", result.Stderr)
		}
		return nil
	})
}

func settings(d desk) {
	if err := d.cluster.StopReplicas(); err != nil {
		d.t.Fatal(err)
	}
	replica, err := d.cluster.StartReadyReplica("--allowed-namespaces=mail,web", "--allowed-namespace-selector=nat=yes",
		"--disclose-holder=false", "--restricted-ports=22, 9000-9100, 53/udp", "--annotation-key=bln.space/podnat")
	if err != nil {
		d.t.Fatal(err)
	}
	mail, web, labelled := d.another("mail"), d.another("web"), d.another("labelled")
	d.succeeds("", "label", "namespace", "labelled", "nat=yes")

	var transcript strings.Builder
	refused := func(title, said string) { fmt.Fprintf(&transcript, "# %s\n%s\n", title, said) }
	refused("a namespace that may not", d.refused(pod("web", expose("80"))))
	refused("a Deployment there", d.refused(workload("Deployment", "web", expose("80"))))
	mail.accepted(pod("smtp", expose("192.0.2.75:25")))
	refused("a port held in another namespace, the holder not disclosed", web.refused(pod("relay", expose("192.0.2.75:25"))))
	refused("a port held in the same namespace", mail.refused(pod("relay", expose("192.0.2.75:25"))))
	refused("a port of a restricted range", mail.refused(pod("high", expose("192.0.2.75:9050"))))
	refused("a port that is restricted for UDP", mail.refused(pod("dns", expose("192.0.2.75:53/udp"))))
	mail.accepted(pod("dns", expose("192.0.2.75:53/tcp")))
	refused("podnat-controller's annotation",
		mail.refused(pod("old", notes{"bln.space/podnat": `{"entries":[{"srcPort":22,"dstPort":22}]}`})))
	mail.accepted(pod("old", notes{"bln.space/podnat": `{"entries":[{"srcPort":2525,"dstPort":25}]}`}))
	d.mentions(mail.pod("old").Metadata.Annotations[effective], `"srcPort":2525`)
	d.eventually(func() error {
		if result := labelled.kubectl(pod("web", expose("80")), "apply", "-f", "-"); !result.Succeeded {
			return fmt.Errorf("a namespace with the label: %s", result.Stderr)
		}
		return nil
	})
	d.golden("settings.txt", transcript.String())
	if d.t.Failed() {
		d.t.Log(replica.LogTail())
	}
}
