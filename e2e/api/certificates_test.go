package api

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// Where the webhook manages its own certificate authority.
const selfManaged = "../../webhook-config/self.yaml"

// The times are those of a test: each stands to the others as in the
// defaults.
var hurriedAuthority = []string{"--ca-lifetime=1h", "--ca-soak=5s", "--ca-retire-after=32s", "--leaf-lifetime=31s"}

// Less than the soak time: so late may an API server learn of a change.
const latestNews = 2500 * time.Millisecond

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
	traffic := startLoad(cluster, 4)
	late := startLateCaller(cluster, replicas)

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

	t.Run("the rights to do so are used, and no other is missed", func(t *testing.T) {
		rights(t, cluster)
	})

	requests, failures := traffic.finish()
	handshakes, refused := late.finish()
	calls, err := cluster.WebhookCalls(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(failures) != 0 || calls.Failed != 0 {
		t.Errorf("%d of %d requests failed; the API server counts %v failed of %v calls:\n%s",
			len(failures), requests, calls.Failed, calls.Total, strings.Join(failures, "\n"))
	}
	if len(refused) != 0 {
		t.Errorf("%d of %d callers who were %s behind could not trust the webhook:\n%s",
			len(refused), handshakes, latestNews, strings.Join(refused, "\n"))
	}
	if requests < 1000 || handshakes < 500 {
		t.Errorf("only %d requests and %d handshakes: that is no load", requests, handshakes)
	}
	t.Logf("%d requests, %v calls, %v failed; %d handshakes with old bundles, %d refused", requests, calls.Total, calls.Failed, handshakes, len(refused))
}

func twoWriters(d desk, replicas []*lab.Replica) {
	const injection = "cert-manager.io/inject-ca-from"
	for _, kind := range configurationKinds {
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
	for _, kind := range configurationKinds {
		d.succeeds("", "annotate", kind, "pinhole", injection+"-")
	}
	d.settles(func(now authority) bool { return now.Phase == "stable" && now.Active != before.Active })
}

// rights compares what the webhook did beyond looking with what its roles grant beyond that.
func rights(t *testing.T, cluster *lab.Cluster) {
	events, err := cluster.Audit()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, event := range events {
		if event.User.Username != "system:serviceaccount:pinhole-system:pinhole-webhook" {
			continue
		}
		deed := event.Verb + " " + event.ObjectRef.Resource
		if event.ResponseStatus.Code == http.StatusForbidden {
			// It may fill its Secret and not make one; it tries when somebody has deleted it.
			if deed != "create secrets" {
				t.Errorf("it was forbidden to %s", deed)
			}
			continue
		}
		if event.ObjectRef.Resource == "secrets" || slices.Contains(configurationKinds, strings.TrimSuffix(event.ObjectRef.Resource, "s")) {
			used[deed] = true
		}
	}
	want := []string{
		"get mutatingwebhookconfigurations", "get secrets", "get validatingwebhookconfigurations",
		"patch mutatingwebhookconfigurations", "patch validatingwebhookconfigurations", "update secrets",
	}
	if got := slices.Sorted(maps.Keys(used)); !slices.Equal(got, want) {
		t.Errorf("it used\n%v\nits roles grant\n%v", got, want)
	}
}

var configurationKinds = []string{"mutatingwebhookconfiguration", "validatingwebhookconfiguration"}

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
	for _, bundle := range bundles(d.cluster.Cluster) {
		if string(bundle) != a.Bundle {
			return false
		}
	}
	return true
}

// bundles are the caBundles of all three webhooks.
func bundles(cluster *lab.Cluster) [][]byte {
	var found [][]byte
	for _, kind := range configurationKinds {
		var configuration struct {
			Webhooks []struct {
				ClientConfig struct {
					CABundle []byte `json:"caBundle"`
				} `json:"clientConfig"`
			}
		}
		path := "/apis/admissionregistration.k8s.io/v1/" + kind + "s/pinhole"
		if cluster.Do(context.Background(), 0, http.MethodGet, path, nil, &configuration) != nil {
			continue
		}
		for _, webhook := range configuration.Webhooks {
			found = append(found, webhook.ClientConfig.CABundle)
		}
	}
	return found
}

// lateCaller makes a new connection to every replica again and again, and trusts what the configurations said a while
// ago, as an API server does that learns late.
type lateCaller struct {
	stop       chan struct{}
	wait       sync.WaitGroup
	handshakes int
	refused    []string
}

func startLateCaller(cluster *lab.Cluster, replicas []*lab.Replica) *lateCaller {
	caller := &lateCaller{stop: make(chan struct{})}
	type news struct {
		read   time.Time
		bundle []byte
	}
	caller.wait.Add(1)
	go func() {
		defer caller.wait.Done()
		var known []news
		for {
			select {
			case <-caller.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			for _, bundle := range bundles(cluster) {
				known = append(known, news{time.Now(), bundle})
			}
			// The oldest that an API server may still have, and everything since.
			for 0 < len(known) && latestNews < time.Since(known[0].read) {
				known = known[1:]
			}
			tried := [][]byte{}
			for _, news := range known {
				if slices.ContainsFunc(tried, func(bundle []byte) bool { return bytes.Equal(bundle, news.bundle) }) {
					continue
				}
				tried = append(tried, news.bundle)
				pool := x509.NewCertPool()
				pool.AppendCertsFromPEM(news.bundle)
				for _, replica := range replicas {
					caller.handshakes++
					if err := lab.DialTrusting(replica, pool); err != nil {
						caller.refused = append(caller.refused, fmt.Sprintf("%s %s, bundle of %s: %v",
							time.Now().Format("15:04:05.000"), replica.Name, news.read.Format("15:04:05.000"), err))
					}
				}
			}
		}
	}()
	return caller
}

func (c *lateCaller) finish() (handshakes int, refused []string) {
	close(c.stop)
	c.wait.Wait()
	return c.handshakes, c.refused
}
