package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// Where the webhook manages its own certificate authority.
const selfManaged = "../../webhook-config/self.yaml"

// The times are those of a test: each stands to the others as in the
// defaults.
var hurriedAuthority = []string{"--ca-lifetime=1h", "--ca-soak=5s", "--ca-retire-after=46s", "--leaf-lifetime=45s"}

// Less than the soak time: so late may an API server learn of a change.
const latestNews = 2500 * time.Millisecond

// Clocks of callers may be five minutes off, less what a certificate takes from its making to its use.
const callersSkew = 4*time.Minute + 55*time.Second

const authorityPath = "/api/v1/namespaces/" + lab.WebhookNamespace + "/secrets/pinhole-webhook-ca"

func TestWhileAuthoritiesReplaceEachOther(t *testing.T) {
	t.Parallel()
	cluster, err := lab.StartCluster(lab.Options{Name: "authority", Network: 4, APIServers: 1, Manifests: selfManaged})
	if err != nil {
		t.Fatal(err)
	}
	replicas := make([]*lab.Replica, 3)
	for index := range replicas {
		if replicas[index], err = cluster.StartReadyReplica(hurriedAuthority...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, replica := range replicas {
				t.Log(replica.LogTail())
			}
		}
	})
	d := desk{t, &officeCluster{Cluster: cluster}, "default"}
	traffic := cluster.StartLoad(4)
	late := cluster.StartLateCallers(replicas, latestNews, 0, -callersSkew)

	t.Run("three new authorities under load fail no call", func(t *testing.T) {
		d := desk{t, d.cluster, d.namespace}
		for rotation := range 3 {
			old := d.authority()
			d.succeeds("", "annotate", "secret", "--namespace="+lab.WebhookNamespace, "pinhole-webhook-ca", "pinhole.dev/rotate=now")
			d.settles(func(now authority) bool {
				return now.Phase == "stable" && now.Active != old.Active && now.trustedBy(d)
			})
			t.Logf("authority %d is in use", rotation+1)
		}
	})
	t.Run("a deleted Secret fails no call", func(t *testing.T) {
		d := desk{t, d.cluster, d.namespace}
		old := d.authority()
		d.succeeds("", "delete", "secret", "--namespace="+lab.WebhookNamespace, "pinhole-webhook-ca")
		if result, err := cluster.Kubectl("", "apply", "-f", selfManaged); err != nil || !result.Succeeded {
			t.Fatal(err, result.Stderr)
		}
		d.settles(func(now authority) bool {
			return now.Phase == "stable" && now.Active != old.Active && now.trustedBy(d)
		})
	})
	t.Run("where cert-manager injects, nothing is written and both writers are named", func(t *testing.T) {
		d := desk{t, d.cluster, d.namespace}
		twoWriters(d, replicas)
	})

	d.finishes(traffic.Finish, late.Finish)

	t.Run("where cert-manager's injector is at work as well, that is noticed and said", func(t *testing.T) {
		besideTheInjector(desk{t, d.cluster, d.namespace}, replicas)
	})
}

// besideTheInjector lets the real injector write into the configurations. It adds to what is there (its predecessors wrote
// over it), so the webhook stays trusted for the time being.
func besideTheInjector(d desk, replicas []*lab.Replica) {
	if err := d.cluster.StartCertManager(); err != nil {
		d.t.Fatal(err)
	}
	const injection, source = "cert-manager.io/inject-ca-from-secret", "somebody-elses-ca"
	other, err := lab.NewAuthority("somebody else")
	if err != nil {
		d.t.Fatal(err)
	}
	secret := object{
		"metadata": object{"name": source, "annotations": notes{"cert-manager.io/allow-direct-injection": "true"}},
		"data":     object{"ca.crt": other.PEM},
	}
	path := "/api/v1/namespaces/" + lab.WebhookNamespace + "/secrets"
	if err := d.cluster.Do(context.Background(), 0, http.MethodPost, path, secret, nil); err != nil {
		d.t.Fatal(err)
	}
	for _, kind := range lab.ConfigurationKinds {
		d.succeeds("", "annotate", kind, "pinhole", injection+"="+lab.WebhookNamespace+"/"+source)
	}
	d.injects(func(now []byte) bool { return bytes.Contains(now, other.PEM) })
	injected := d.bundle()
	d.counts(replicas, "pinhole_certificate_authority_other_writers 2")
	for _, replica := range replicas {
		d.mentions(replica.Log(), "Two writers want to set the caBundle", injection)
	}
	// Who is told to write a configuration is the only one who does.
	time.Sleep(3 * time.Second)
	if now := d.bundle(); !bytes.Equal(now, injected) {
		d.t.Errorf("the webhook wrote over what cert-manager had injected: %s", now)
	}
	for _, kind := range lab.ConfigurationKinds {
		d.succeeds("", "annotate", kind, "pinhole", injection+"-")
	}
	d.settles(func(now authority) bool { return now.trustedBy(d) })
	d.counts(replicas, "pinhole_certificate_authority_other_writers 0")
}

// counts waits until every replica's metrics have this line.
func (d desk) counts(replicas []*lab.Replica, line string) {
	d.t.Helper()
	for _, replica := range replicas {
		d.eventually(func() error {
			metrics, err := replica.Metrics()
			if err == nil && !strings.Contains(metrics, line+"\n") {
				err = fmt.Errorf("%s does not count %q", replica.Name, line)
			}
			return err
		})
	}
}

func twoWriters(d desk, replicas []*lab.Replica) {
	const injection = "cert-manager.io/inject-ca-from"
	for _, kind := range lab.ConfigurationKinds {
		d.succeeds("", "annotate", kind, "pinhole", injection+"=pinhole-system/pinhole-webhook")
	}
	before := d.authority()
	d.succeeds("", "annotate", "secret", "--namespace="+lab.WebhookNamespace, "pinhole-webhook-ca", "pinhole.dev/rotate=now")
	d.settles(func(now authority) bool { return now.Phase == "publish" })
	// Longer than a rotation that goes on would take to its next step.
	time.Sleep(14 * time.Second)
	if now := d.authority(); now.Phase != "publish" || now.Active != before.Active {
		d.t.Errorf("the authority is in phase %q, although nobody publishes the next one", now.Phase)
	}
	var logs strings.Builder
	for _, replica := range replicas {
		logs.WriteString(replica.Log())
	}
	d.mentions(logs.String(), "Two writers want to set the caBundle", injection)
	for _, kind := range lab.ConfigurationKinds {
		d.succeeds("", "annotate", kind, "pinhole", injection+"-")
	}
	d.settles(func(now authority) bool { return now.Phase == "stable" && now.Active != before.Active })
}

// authority is the state in the webhook's Secret, as far as these tests look.
type authority struct {
	Phase, Active, Bundle string
}

func (d desk) authority() authority {
	d.t.Helper()
	var secret struct{ Data map[string][]byte }
	if err := d.cluster.Do(context.Background(), 0, http.MethodGet, authorityPath, nil, &secret); err != nil {
		d.t.Fatal(err)
	}
	return authority{string(secret.Data["phase"]), string(secret.Data["active.crt"]), string(secret.Data["ca.crt"])}
}

// settles waits until the authority is as it should be; a whole rotation takes three quarters of a minute with these times.
func (d desk) settles(is func(authority) bool) {
	d.t.Helper()
	err := lab.Poll(2*time.Minute, func() error {
		if now := d.authority(); !is(now) {
			return fmt.Errorf("the authority is in phase %q", now.Phase)
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

// trustedBy says whether the configurations trust this authority's bundle and nobody else.
func (a authority) trustedBy(d desk) bool {
	bundles, err := d.cluster.Bundles()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, bundle := range bundles {
		if string(bundle) != a.Bundle {
			return false
		}
	}
	return true
}
