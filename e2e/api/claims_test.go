package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// The cluster in which claims are on: three replicas of the webhook, two of the controller.
var registry = sync.OnceValues(func() (*registryCluster, error) {
	return startRegistry(lab.Options{Name: "registry", Network: 12, APIServers: 1}, 3, 2)
})

// startRegistry brings up a cluster with claims.
func startRegistry(options lab.Options, replicas, controllers int) (*registryCluster, error) {
	cluster, err := lab.StartCluster(options)
	if err != nil {
		return nil, err
	}
	if result, err := cluster.Kubectl("", "apply", "-f", "../../webhook-config/claims.yaml"); err != nil || !result.Succeeded {
		return nil, fmt.Errorf("claims.yaml: %w\n%s", err, result.Stderr)
	}
	// The agents that tests start have the flags of their DaemonSet, and the plugin reads there that they go by claims.
	flag := `[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--claims"}]`
	if result, err := cluster.Kubectl("", "patch", "daemonset", "pinhole-agent", "--namespace="+lab.WebhookNamespace, "--type=json", "--patch="+flag); err != nil || !result.Succeeded {
		return nil, fmt.Errorf("--claims of the agents: %w\n%s", err, result.Stderr)
	}
	open := natPool("documentation", object{
		"addresses": []string{"192.0.2.0/24", "203.0.113.33"}, "ports": everyPort, "namespaces": object{"all": true},
	})
	if err := cluster.Do(context.Background(), 0, http.MethodPost, poolsPath, open, nil); err != nil {
		return nil, err
	}
	for range replicas {
		if _, err := cluster.StartReadyReplica("--claims", "--compat=ack"); err != nil {
			return nil, err
		}
	}
	registry := &registryCluster{Cluster: cluster}
	for range controllers {
		controller, err := cluster.StartController("--compat=ack")
		if err != nil {
			return nil, err
		}
		registry.controllers = append(registry.controllers, controller)
	}
	return registry, nil
}

type registryCluster struct {
	*lab.Cluster
	controllers []*lab.Controller
}

// patience is how long tests wait for what has to come about by itself. One of them kills the leader of the controllers, the
// other waits for its lease to run out, and the machine is busy with many tests at a time.
const patience = 90 * time.Second

// clerk is a namespace for one test in the cluster with claims.
type clerk struct {
	t         *testing.T
	cluster   *registryCluster
	namespace string
}

// So many tests use the cluster with claims at a time: what they all wait for is one controller.
var desks = make(chan struct{}, 10)

func newClerk(t *testing.T, namespace string) clerk {
	t.Helper()
	desks <- struct{}{}
	t.Cleanup(func() { <-desks })
	cluster, err := registry()
	if err != nil {
		t.Fatal(err)
	}
	c := clerk{t, cluster, namespace}
	c.must(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": namespace}}, nil)
	t.Cleanup(func() {
		if t.Failed() {
			for _, controller := range cluster.controllers {
				t.Log(controller.LogTail())
			}
		}
	})
	return c
}

// must sends a request until it is decided: on a busy machine a call to the webhook can run out of its time.
func (c clerk) must(method, path string, body, out any) {
	c.t.Helper()
	var err error
	_ = lab.Poll(patience, func() error {
		err = c.cluster.Do(context.Background(), 0, method, path, body, out)
		var status *lab.StatusError
		if errors.As(err, &status) && status.Code >= http.StatusInternalServerError {
			c.t.Logf("undecided: %v", err)
			return err
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// asking is a pod that asks for ports in the short form.
func asking(name, ports string) object {
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": name, "annotations": notes{"pinhole.dev/expose": ports}},
		"spec":     object{"containers": []object{{"name": "main", "image": "example.com/app:1"}}},
	}
}

func (c clerk) podsPath() string { return "/api/v1/namespaces/" + c.namespace + "/pods" }

// attempt asks for a pod once and returns the code of the answer.
func (c clerk) attempt(query string, pod object) (int, string) {
	err := c.cluster.Do(context.Background(), 0, http.MethodPost, c.podsPath()+query, pod, nil)
	var status *lab.StatusError
	switch {
	case err == nil:
		return http.StatusCreated, ""
	case errors.As(err, &status):
		return status.Code, status.Message
	default:
		c.t.Error(err)
		return 0, err.Error()
	}
}

// create asks for a pod until that is decided: on a busy machine a call can run out of its time.
func (c clerk) create(query string, pod object) (code int, said string) {
	c.t.Helper()
	if err := lab.Poll(patience, func() error {
		if code, said = c.attempt(query, pod); code >= http.StatusInternalServerError {
			c.t.Logf("undecided: HTTP %d: %s", code, said)
			return errors.New(said)
		}
		return nil
	}); err != nil {
		c.t.Error(err)
	}
	return code, said
}

type storedClaim struct {
	Metadata struct{ Name string }
	Spec     struct {
		State  string
		PodUID string
		Pool   string
		Holder struct{ Kind, Namespace, Name string }

		PreviousHolder struct{ Kind, Namespace, Name string }

		Retention struct {
			Policy     string
			TTLSeconds int
		}
	}
}

// claims are the claims of an address by their names.
func (c clerk) claims(address string) map[string]storedClaim {
	c.t.Helper()
	var list struct{ Items []storedClaim }
	c.must(http.MethodGet, "/apis/pinhole.dev/v1alpha1/portclaims?fieldSelector=spec.address%3D"+address, nil, &list)
	claims := map[string]storedClaim{}
	for _, claim := range list.Items {
		claims[claim.Metadata.Name] = claim
	}
	return claims
}

// Before the tests that run side by side: it keeps the machine busy by itself.
func TestOfAThousandRacesForOnePortExactlyOneIsWonEach(t *testing.T) {
	c := newClerk(t, "races")
	const races, racers, atOnce = 1000, 3, 4
	var undecided atomic.Int64
	tickets := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for race := range races {
		tickets <- struct{}{}
		all.Add(1)
		go func() {
			defer func() { <-tickets; all.Done() }()
			ports := fmt.Sprintf("192.0.2.60:%d", 20000+race)
			var winners atomic.Int64
			var running sync.WaitGroup
			for racer := range racers {
				running.Add(1)
				go func() {
					defer running.Done()
					switch code, said := c.attempt("", asking(fmt.Sprintf("racer-%d-%d", race, racer), ports)); code {
					case http.StatusCreated:
						winners.Add(1)
					case http.StatusUnprocessableEntity:
						if !strings.Contains(said, ports) || !strings.Contains(said, fmt.Sprintf("races/racer-%d-", race)) {
							t.Errorf("race %d: the refusal names no port or no holder: %s", race, said)
						}
					default:
						undecided.Add(1)
						t.Logf("race %d: HTTP %d: %s", race, code, said)
					}
				}()
			}
			running.Wait()
			if winners := winners.Load(); winners != 1 {
				t.Errorf("race %d was won by %d", race, winners)
			}
		}()
	}
	all.Wait()
	if lost := undecided.Load(); races/50 < lost {
		t.Errorf("%d of %d requests ended without a decision", lost, races*racers)
	}

	var pods struct{ Items []storedPod }
	c.must(http.MethodGet, c.podsPath(), nil, &pods)
	claims := c.claims("192.0.2.60")
	if len(pods.Items) != races || len(claims) != races {
		t.Errorf("%d pods hold %d claims after %d races", len(pods.Items), len(claims), races)
	}
	for _, pod := range pods.Items {
		port := strings.TrimPrefix(pod.Metadata.Annotations["pinhole.dev/expose"], "192.0.2.60:")
		claim := claims["v4-192-0-2-60-tcp-"+port]
		if claim.Spec.Holder.Name != pod.Metadata.Name {
			t.Errorf("port %s is %s's and claimed by %q", port, pod.Metadata.Name, claim.Spec.Holder.Name)
		}
	}
}

func TestADryRunClaimsNothingAndSeesWhatIsClaimed(t *testing.T) {
	c := newClerk(t, "dry-run")
	pod := asking("first", "192.0.2.61:25,192.0.2.61:7000-7100/udp")
	if code, said := c.create("?dryRun=All", pod); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	if claims := c.claims("192.0.2.61"); len(claims) != 0 {
		t.Errorf("a dry run left %v", claims)
	}
	if code, said := c.create("", pod); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	if code, said := c.create("?dryRun=All", asking("second", "192.0.2.61:7050/udp")); code != http.StatusUnprocessableEntity {
		t.Errorf("HTTP %d: %s", code, said)
	}
}

func TestClaimsLiveAndEndWithWhatUsesThem(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "lives")
	// Quota is checked after every webhook.
	refusing := c
	refusing.namespace = "refusing"
	c.must(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": "refusing"}}, nil)
	c.must(http.MethodPost, "/api/v1/namespaces/refusing/resourcequotas",
		object{"metadata": object{"name": "none"}, "spec": object{"hard": object{"pods": "0"}}}, nil)
	c.must(http.MethodPatch, "/api/v1/namespaces/refusing/resourcequotas/none/status",
		object{"status": object{"hard": object{"pods": "0"}, "used": object{"pods": "0"}}}, nil)
	plain := object{"metadata": object{"name": "plain"}, "spec": asking("plain", "")["spec"]}
	if err := lab.Poll(patience, func() error {
		if code, said := refusing.create("?dryRun=All", plain); code != http.StatusForbidden {
			return fmt.Errorf("HTTP %d: %s", code, said)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if code, said := refusing.create("", asking("refused", "192.0.2.62:25")); code != http.StatusForbidden {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	if state := c.claims("192.0.2.62")["v4-192-0-2-62-tcp-25"].Spec.State; state != "Reserved" {
		t.Fatalf("the claim of a pod that a quota refused is %q", state)
	}
	if code, said := c.create("", asking("early", "192.0.2.62:25")); code != http.StatusUnprocessableEntity {
		t.Errorf("the port of a pod that may be stored yet was given away: HTTP %d: %s", code, said)
	}

	if code, said := c.create("", asking("brief", "192.0.2.63:7000-7030/udp")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	var pod struct{ Metadata struct{ UID string } }
	c.must(http.MethodGet, c.podsPath()+"/brief", nil, &pod)
	every := func(states, uid string) error {
		claims := c.claims("192.0.2.63")
		// 7000-7007, 7008-7023 as a block, 7024-7030.
		if len(claims) != 16 {
			return fmt.Errorf("%d claims, expected 16", len(claims))
		}
		for name, claim := range claims {
			if !strings.Contains(states, claim.Spec.State) || claim.Spec.PodUID != uid {
				return fmt.Errorf("%s is %s for pod %q", name, claim.Spec.State, claim.Spec.PodUID)
			}
		}
		return nil
	}
	if err := lab.Poll(patience, func() error { return every("Bound", pod.Metadata.UID) }); err != nil {
		t.Fatal(err)
	}
	c.must(http.MethodDelete, c.podsPath()+"/brief", object{"gracePeriodSeconds": 0}, nil)
	// The leader goes, and the other one finishes the work.
	c.cluster.controllers[0].Kill()

	if err := lab.Poll(180*time.Second, func() error {
		if left := c.claims("192.0.2.62"); len(left) != 0 {
			return fmt.Errorf("an orphan is left: %v", left)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if code, said := c.create("", asking("late", "192.0.2.62:25")); code != http.StatusCreated {
		t.Errorf("a free port was refused: HTTP %d: %s", code, said)
	}
	if err := lab.Poll(patience, func() error { return every("Releasing or Cooldown", "") }); err != nil {
		t.Error(err)
	}
	if code, said := c.create("", asking("other", "192.0.2.63:7010/udp")); code != http.StatusUnprocessableEntity {
		t.Errorf("a port that is being released was given away: HTTP %d: %s", code, said)
	}

	if code, said := c.create("", asking("brief", "192.0.2.63:7000-7030/udp")); code != http.StatusCreated {
		t.Fatalf("the ports that a holder has just had were refused to itself: HTTP %d: %s", code, said)
	}
	c.must(http.MethodGet, c.podsPath()+"/brief", nil, &pod)
	bound := func() error { return every("Bound", pod.Metadata.UID) }
	if err := lab.Poll(patience, bound); err != nil {
		t.Fatal(err)
	}
	c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/portclaims/v4-192-0-2-63-udp-7030", nil, nil)
	if err := lab.Poll(patience, bound); err != nil {
		t.Errorf("a deleted claim of a living pod does not come back: %v", err)
	}
}
