package api

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// Where cert-manager issues the webhook's certificate and injects its authority.
const certManaged = "../../webhook-config/cert-manager.yaml"

// Kubelets look for changed Secrets at times of their own.
var kubeletLags = []time.Duration{0, 1500 * time.Millisecond, 4 * time.Second}

// The webhook reads its files every 10 s.
const newsByFile = 30 * time.Second

func TestWhileCertManagerRenewsCertificates(t *testing.T) {
	t.Parallel()
	cluster, err := lab.StartCluster(lab.Options{Name: "cert-manager", Network: 5, APIServers: 1, CertManager: true, Manifests: certManaged})
	if err != nil {
		t.Fatal(err)
	}
	var replicas []*lab.Replica
	for index, lag := range kubeletLags {
		volume, err := cluster.MountSecret("pinhole-webhook-tls", fmt.Sprint(index), lag)
		if err != nil {
			t.Fatalf("%v\n%s", err, cluster.Issuer.LogTail())
		}
		replica, err := cluster.StartReadyReplicaWith(volume)
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, replica)
	}
	d := desk{t, &officeCluster{Cluster: cluster}, "default"}
	d.injects(firstBundle)
	t.Run("the issuer of the examples can sign", func(t *testing.T) {
		d := desk{t, d.cluster, d.namespace}
		d.another("cert-manager").succeeds("", "apply", "-f", "../../certs/issuer.yaml")
		d.succeeds("", "wait", "--for=condition=Ready", "--timeout=30s", "clusterissuer/platform-ca")
	})
	traffic := cluster.StartLoad(4)
	late := cluster.StartLateCallers(replicas, latestNews, 0, callersSkew)

	t.Run("three renewed certificates under load fail no call", func(t *testing.T) {
		for range 3 {
			desk{t, d.cluster, d.namespace}.renews(replicas, func() {
				if err := cluster.RenewCertificate("pinhole-webhook"); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	t.Run("a renewed authority under load fails no call", func(t *testing.T) {
		d := desk{t, d.cluster, d.namespace}
		old := d.bundle()
		if err := cluster.RenewCertificate("pinhole-webhook-ca"); err != nil {
			t.Fatal(err)
		}
		d.renews(replicas, func() {
			if err := cluster.RenewCertificate("pinhole-webhook"); err != nil {
				t.Fatal(err)
			}
		})
		d.injects(func(now []byte) bool { return !bytes.Equal(now, old) })
	})
	d.finishes(traffic.Finish, late.Finish)
}

func TestWhileCertificateFilesAreReplaced(t *testing.T) {
	t.Parallel()
	cluster, err := lab.StartCluster(lab.Options{Name: "files", Network: 6, APIServers: 1})
	if err != nil {
		t.Fatal(err)
	}
	var volumes []*lab.Volume
	var replicas []*lab.Replica
	for index := range kubeletLags {
		volume, err := cluster.NewVolume(fmt.Sprint(index))
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, volume)
	}
	f := fileTest{desk{t, &officeCluster{Cluster: cluster}, "default"}, volumes, nil}
	f.write(f.issue(cluster.Authority))
	for _, volume := range volumes {
		replica, err := cluster.StartReadyReplicaWith(volume)
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, replica)
	}
	f.replicas = replicas
	traffic := cluster.StartLoad(4)
	late := cluster.StartLateCallers(replicas, latestNews, 0, callersSkew, -callersSkew)

	t.Run("three replaced certificates under load fail no call", func(t *testing.T) {
		f := f.in(t)
		for range 3 {
			f.renews(replicas, func() { f.write(f.issue(cluster.Authority)) })
		}
	})
	t.Run("what callers would not accept leaves the one before in service", func(t *testing.T) { f.in(t).unfitPairs() })
	t.Run("another authority under load fails no call", func(t *testing.T) {
		f := f.in(t)
		next, err := lab.NewAuthority("pinhole e2e files, the next")
		if err != nil {
			t.Fatal(err)
		}
		f.trusts(slices.Concat(cluster.Authority.PEM, next.PEM))
		f.renews(replicas, func() { f.write(f.issue(next)) })
		f.trusts(next.PEM)
		f.renews(replicas, func() { f.write(f.issue(next)) })
	})
	f.finishes(traffic.Finish, late.Finish)
}

// renews waits until every replica serves another certificate than before, and has counted it.
func (d desk) renews(replicas []*lab.Replica, renew func()) {
	d.t.Helper()
	before := make([][]byte, len(replicas))
	for index, replica := range replicas {
		before[index] = d.served(replica)
	}
	renew()
	for index, replica := range replicas {
		err := lab.Poll(newsByFile, func() error {
			if bytes.Equal(d.served(replica), before[index]) {
				return fmt.Errorf("%s still serves the certificate before\n%s", replica.Name, replica.LogTail())
			}
			return nil
		})
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d desk) served(replica *lab.Replica) []byte {
	d.t.Helper()
	certificate, err := replica.Served()
	if err != nil {
		d.t.Fatal(err)
	}
	return certificate.Raw
}

// bundle is the caBundle of all webhooks, which must agree.
func (d desk) bundle() []byte {
	d.t.Helper()
	var agreed []byte
	d.eventually(func() error {
		bundles, err := d.cluster.Bundles()
		if err != nil {
			return err
		}
		for _, bundle := range bundles[1:] {
			if !bytes.Equal(bundle, bundles[0]) {
				return fmt.Errorf("the configurations trust different authorities")
			}
		}
		agreed = bundles[0]
		return nil
	})
	return agreed
}

func firstBundle(now []byte) bool { return bytes.Contains(now, []byte("BEGIN CERTIFICATE")) }

// injects waits until cert-manager has written the bundle.
func (d desk) injects(is func([]byte) bool) {
	d.t.Helper()
	d.eventually(func() error {
		if now := d.bundle(); !is(now) {
			return fmt.Errorf("the caBundle is %q\n%s", now, d.cluster.Issuer.LogTail())
		}
		return nil
	})
}

func (d desk) finishes(finish ...func() (string, error)) {
	d.t.Helper()
	for _, finish := range finish {
		summary, err := finish()
		if err != nil {
			d.t.Error(err)
		}
		d.t.Log(summary)
	}
}

// fileTest has one volume for each replica.
type fileTest struct {
	desk
	volumes  []*lab.Volume
	replicas []*lab.Replica
}

func (f fileTest) in(t *testing.T) fileTest {
	return fileTest{desk{t, f.cluster, f.namespace}, f.volumes, f.replicas}
}

// issue makes a pair that callers with a wrong clock accept, too.
func (f fileTest) issue(authority *lab.Authority) lab.Pair {
	return f.issueFor(authority, -5*time.Minute, 24*time.Hour, lab.WebhookHost)
}

func (f fileTest) issueFor(authority *lab.Authority, from, until time.Duration, name string) lab.Pair {
	f.t.Helper()
	pair, err := authority.IssueFor(time.Now().Add(from), time.Now().Add(until), name)
	if err != nil {
		f.t.Fatal(err)
	}
	return pair
}

func (f fileTest) write(pair lab.Pair) {
	f.t.Helper()
	for index, volume := range f.volumes {
		if err := volume.WritePair(pair); err != nil {
			f.t.Fatal(err)
		}
		if f.replicas != nil {
			time.Sleep(kubeletLags[index] / 4)
		}
	}
}

// trusts writes the caBundle, and waits until the last API server has heard of it.
func (f fileTest) trusts(authorities []byte) {
	f.t.Helper()
	if err := f.cluster.Trust(authorities); err != nil {
		f.t.Fatal(err)
	}
	time.Sleep(latestNews + time.Second)
}

func (f fileTest) unfitPairs() {
	authority := f.cluster.Authority
	good, other := f.issue(authority), f.issue(authority)
	stranger, err := lab.NewAuthority("somebody else")
	if err != nil {
		f.t.Fatal(err)
	}
	foreign := f.issue(stranger)
	cases := []struct {
		name  string
		files map[string][]byte
		told  string
	}{
		{"a key of another certificate", map[string][]byte{"tls.crt": good.Chain, "tls.key": other.Key}, "does not belong to the first certificate"},
		{"half a certificate", map[string][]byte{"tls.crt": good.Chain[:len(good.Chain)/4], "tls.key": good.Key}, "is not whole PEM"},
		{"no key", map[string][]byte{"tls.crt": good.Chain, "tls.key": {}}, "holds no private key"},
		{"an expired one", f.files(f.issueFor(authority, -time.Hour, -6*time.Minute, lab.WebhookHost)), "expired at"},
		{"one of the day after tomorrow", f.files(f.issueFor(authority, 48*time.Hour, 72*time.Hour, lab.WebhookHost)), "is valid only from"},
		{"one of a clock that is ahead", f.files(f.issueFor(authority, 4*time.Minute, 24*time.Hour, lab.WebhookHost)), "is valid only from"},
		{"one for another name", f.files(f.issueFor(authority, -time.Hour, time.Hour, "elsewhere.example")), "does not carry the name"},
		{
			"one of an authority other than the one beside it",
			map[string][]byte{"tls.crt": foreign.Chain, "tls.key": foreign.Key, "ca.crt": authority.PEM},
			"does not come from the authority in",
		},
	}
	replica := f.replicas[0]
	served := f.served(replica)
	for index, each := range cases {
		if err := f.volumes[0].Write(each.files); err != nil {
			f.t.Fatal(err)
		}
		err := lab.Poll(newsByFile, func() error {
			metrics, err := replica.Metrics()
			if counted := fmt.Sprintf("pinhole_certificate_reload_failures_total %d\n", index+1); err == nil && !strings.Contains(metrics, counted) {
				err = fmt.Errorf("%s is not counted\n%s", each.name, replica.LogTail())
			}
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
		f.mentions(replica.Log(), each.told)
		if !bytes.Equal(f.served(replica), served) {
			f.t.Errorf("%s is served", each.name)
		}
	}
	if err := f.volumes[0].WritePair(good); err != nil {
		f.t.Fatal(err)
	}
}

func (f fileTest) files(pair lab.Pair) map[string][]byte {
	return map[string][]byte{"tls.crt": pair.Chain, "tls.key": pair.Key}
}
