package chart

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// A cluster with the controllers of a full one, from which Pinhole is removed. No webhook ever answers in it.
var removal = sync.OnceValues(func() (*lab.Cluster, error) {
	return lab.StartCluster(lab.Options{
		Name: "removal", Network: 10, APIServers: 1, Controllers: true, Manifests: "../../webhook-config/self.yaml",
	})
})

// The cluster's kinds of ours came with the manifests, and only one installation can own them.
const sharedKinds = "crds.install=false"

// release is an installation by Helm in a namespace of its own.
type release struct {
	*kubelets
	name       string
	kubeconfig string
}

func installed(t *testing.T, name string, settings ...string) release {
	t.Helper()
	return install(t, name, chart, append(settings, sharedKinds)...)
}

func install(t *testing.T, name, chart string, settings ...string) release {
	t.Helper()
	cluster, err := removal()
	if err != nil {
		t.Fatal(err)
	}
	r := release{startKubelets(t, cluster, name), name, filepath.Join(t.TempDir(), "kubeconfig")}
	if err := os.WriteFile(r.kubeconfig, []byte(cluster.AdminKubeconfig()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"node-a", "node-b", "node-c"} {
		r.node(node, true)
	}
	arguments := []string{"install", name, chart, "--create-namespace"}
	for _, setting := range settings {
		arguments = append(arguments, "--set="+setting)
	}
	if _, err := r.helm(arguments...); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r release) helm(arguments ...string) (string, error) {
	return helm(append(arguments, "--kubeconfig="+r.kubeconfig, "--namespace="+r.name)...)
}

func (r release) kubectl(stdin string, arguments ...string) lab.Result {
	r.t.Helper()
	result, err := r.cluster.Kubectl(stdin, arguments...)
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

// hasLeft checks that nothing with the labels of an installation is left, and that its namespace has no pod and no Secret.
// What the release's own objects made, such as the pods of a Deployment, goes a little after them.
func (r release) hasLeft(instance, namespace string) {
	r.t.Helper()
	kinds := "validatingwebhookconfigurations,mutatingwebhookconfigurations,clusterroles,clusterrolebindings,roles,rolebindings," +
		"serviceaccounts,secrets,configmaps,services,deployments,daemonsets,jobs,pods,poddisruptionbudgets,networkpolicies,leases"
	for _, query := range [][]string{
		{kinds, "--all-namespaces", "--selector=app.kubernetes.io/instance=" + instance},
		{"secrets,daemonsets,jobs,pods", "--namespace=" + namespace},
	} {
		if err := lab.Poll(20*time.Second, func() error {
			left := r.kubectl("", append([]string{"get", "--output=name"}, query...)...)
			if !left.Succeeded || strings.TrimSpace(left.Stdout) != "" {
				return fmt.Errorf("this is left of %s:\n%s%s", instance, left.Stdout, left.Stderr)
			}
			return nil
		}); err != nil {
			r.t.Error(err)
		}
	}
}

// mentions checks that a text has all of these, in this order.
func mentions(t *testing.T, text string, expected ...string) {
	t.Helper()
	rest := text
	for _, part := range expected {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Errorf("%q is missing, or not in its place, in\n%s", part, text)
			return
		}
		rest = after
	}
}

// had looks through the audit log for what an account asked for, in order, and checks that nothing was refused to it.
func (r release) had(account string) []string {
	r.t.Helper()
	events, err := r.cluster.Audit()
	if err != nil {
		r.t.Fatal(err)
	}
	var asked []string
	for _, event := range events {
		if event.User.Username != "system:serviceaccount:"+account {
			continue
		}
		if event.ResponseStatus.Code == http.StatusForbidden {
			r.t.Errorf("%s was forbidden to %s %s %s", account, event.Verb, event.ObjectRef.Resource, event.ObjectRef.Name)
		}
		request := event.Verb + " " + event.ObjectRef.Resource
		if event.ObjectRef.Name != "" && event.ObjectRef.Resource != "pods" && event.ObjectRef.Resource != "events" {
			request += " " + event.ObjectRef.Name
		}
		if !slices.Contains(asked, request) {
			asked = append(asked, request)
		}
	}
	return asked
}

func TestUninstallLeavesNothingThoughANodeIsDown(t *testing.T) {
	r := installed(t, "gone")
	r.awaitReady("agent", 3)
	r.node("node-c", false)
	output, err := r.helm("uninstall", "gone", "--timeout=2m", "--wait")
	if err != nil {
		t.Fatalf("%v\n%s", err, r.told())
	}
	t.Log(output, r.told())
	mentions(t, r.told(), "deleted  validatingwebhookconfiguration/gone-pinhole", "deleted  mutatingwebhookconfiguration/gone-pinhole",
		"deleted  daemonset/gone-pinhole-agent", "deleted  secrets/gone-pinhole-webhook-ca", "cleaned  2 nodes: node-a, node-b",
		"NOT CLEANED: node-c could not be reached (Ready is Unknown: kubelet stopped posting node status)",
		"kubectl debug node/node-c -it --profile=netadmin --image=ghcr.io/pinhole-dev/pinhole-agent:0.1.0 -- pinhole cleanup --xtables-lock-file=/host/run/xtables.lock")
	events := r.history()
	for _, node := range []string{"node-a", "node-b"} {
		ended, clean := slices.Index(events, "agent ended on "+node), slices.Index(events, "cleanup ready on "+node)
		if ended < 0 || clean < ended {
			t.Errorf("%s was cleaned before its agent had ended: %v", node, events)
		}
	}
	told := r.kubectl("", "get", "events", "--namespace=default", "--field-selector=reason=PinholeNotCleaned", "--output=jsonpath={.items[*].message}")
	mentions(t, told.Stdout, "kubectl debug node/node-c")
	// Every right that the chart grants, and in the order in which nothing breaks and nothing comes back.
	want := []string{
		"delete validatingwebhookconfigurations gone-pinhole", "delete mutatingwebhookconfigurations gone-pinhole",
		"delete daemonsets gone-pinhole-agent", "list nodes", "list pods", "get daemonsets gone-pinhole-cleanup",
		"patch daemonsets gone-pinhole-cleanup", "create events", "delete daemonsets gone-pinhole-cleanup", "delete pods",
		"get daemonsets gone-pinhole-agent", "delete leases gone-pinhole-controller", "delete secrets gone-pinhole-webhook-ca",
		"list portclaims", "list natnodes", "list pinholes", "list natpools",
	}
	if asked := r.had("gone:gone-pinhole-uninstall"); !slices.Equal(asked, want) {
		t.Errorf("it asked to\n%s\nexpected\n%s", strings.Join(asked, "\n"), strings.Join(want, "\n"))
	}
	r.hasLeft("gone", "gone")
}

func TestUninstallDeletesWhatWasClaimedAndReported(t *testing.T) {
	r := installed(t, "claimed", "claims.enabled=true")
	r.awaitReady("agent", 3)
	// No webhook answers here, and what users write was written while one did.
	r.kubectl("", "delete", "validatingwebhookconfigurations", "--all")
	written := r.kubectl(`apiVersion: pinhole.dev/v1alpha1
kind: PortClaim
metadata: {name: v4-192-0-2-1-tcp-80}
spec:
  address: 192.0.2.1
  protocol: TCP
  port: 80
  holder: {kind: Deployment, namespace: mail, name: postfix}
  state: Reserved
  since: "2026-01-02T03:04:05Z"
  renewed: "2026-01-02T03:04:05Z"
---
apiVersion: pinhole.dev/v1alpha1
kind: NatNode
metadata: {name: node-z, finalizers: [pinhole.dev/agent, example.com/audit]}
spec: {}
---
apiVersion: pinhole.dev/v1alpha1
kind: Pinhole
metadata: {name: of-a-pod, namespace: default, labels: {app.kubernetes.io/managed-by: pinhole-controller}, finalizers: [pinhole.dev/release]}
spec: {target: {service: web}, addresses: [192.0.2.1], ports: [{port: 80}]}
---
apiVersion: pinhole.dev/v1alpha1
kind: Pinhole
metadata: {name: of-somebody, namespace: default, finalizers: [pinhole.dev/agent]}
spec: {target: {service: web}, addresses: [192.0.2.1], ports: [{port: 81}]}
---
apiVersion: pinhole.dev/v1alpha1
kind: NatPool
metadata: {name: theirs, finalizers: [pinhole.dev/claims]}
spec: {addresses: [192.0.2.1]}
---
`+waitingPod("claimed-lobby"), "apply", "--filename=-")
	if !written.Succeeded {
		t.Fatal(written.Stderr)
	}
	if output, err := r.helm("uninstall", "claimed", "--timeout=2m", "--wait"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, r.told())
	}
	mentions(t, r.told(), "deleted  portclaims.v1alpha1.pinhole.dev: 1", "deleted  natnodes.v1alpha1.pinhole.dev: ")
	left := r.kubectl("", "get", "portclaims,natnodes", "--output=jsonpath={range .items[*]}{.metadata.name} {.metadata.finalizers}{end}")
	if left.Stdout != `node-z ["example.com/audit"]` {
		t.Errorf("this is left: %s", left.Stdout)
	}
	pinholes := r.kubectl("", "get", "pinholes.pinhole.dev", "--namespace=default", "--output=jsonpath={range .items[*]}{.metadata.name} {.metadata.finalizers}{end}")
	if pinholes.Stdout != "of-somebody " {
		t.Errorf("these Pinholes are left: %s", pinholes.Stdout)
	}
	r.isLetGo("claimed-lobby")
	// What somebody wrote stays, and can be deleted.
	if result := r.kubectl("", "delete", "natpool", "theirs", "--timeout=10s"); !result.Succeeded {
		t.Errorf("the pool: %s%s", result.Stdout, result.Stderr)
	}
	r.had("claimed:claimed-pinhole-uninstall")
	r.hasLeft("claimed", "claimed")
	r.kubectl("", "patch", "natnode", "node-z", "--type=merge", "--patch={\"metadata\":{\"finalizers\":null}}")
}

// waitingPod is a pod that waits for its ports, and for somebody else.
func waitingPod(name string) string {
	return `apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, namespace: default, annotations: {pinhole.dev/expose: "auto:80"}}
spec:
  schedulingGates: [{name: pinhole.dev/endpoints}, {name: example.com/quota}]
  containers: [{name: main, image: example.com/app:1}]
`
}

// isLetGo checks that a waitingPod waits for somebody else alone.
func (r release) isLetGo(name string) {
	r.t.Helper()
	mentions(r.t, r.told(), "let go   pod default/"+name+", which waited for its ports")
	gates := r.kubectl("", "get", "pod", name, "--namespace=default", "--output=jsonpath={.spec.schedulingGates[*].name}")
	if gates.Stdout != "example.com/quota" {
		r.t.Errorf("the pod %s waits at %q", name, gates.Stdout)
	}
	r.kubectl("", "delete", "pod", name, "--namespace=default", "--grace-period=0", "--force")
}

func TestTurningClaimsOffLetsGoOfWhatOnlyAControllerWould(t *testing.T) {
	r := installed(t, "ceased", "claims.enabled=true", "claims.defaultPool.name=ceased-addresses")
	r.awaitReady("agent", 3)
	r.kubectl("", "delete", "validatingwebhookconfigurations,mutatingwebhookconfigurations", "--all")
	// The Lease is what a controller leaves behind.
	written := r.kubectl(`apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: ceased-pinhole-controller, namespace: ceased}
spec: {holderIdentity: "", leaseDurationSeconds: 15}
---
apiVersion: v1
kind: Namespace
metadata: {name: ceased-tenant}
---
apiVersion: pinhole.dev/v1alpha1
kind: Pinhole
metadata: {name: theirs, namespace: ceased-tenant, finalizers: [pinhole.dev/release, example.com/audit]}
spec: {target: {service: web}, addresses: [192.0.2.2], ports: [{port: 81}]}
---
apiVersion: pinhole.dev/v1alpha1
kind: NatPool
metadata: {name: ceased, finalizers: [pinhole.dev/claims]}
spec: {addresses: [192.0.2.2]}
---
`+waitingPod("ceased-lobby"), "apply", "--filename=-")
	if !written.Succeeded {
		t.Fatal(written.Stderr)
	}
	off := []string{"upgrade", "ceased", chart, "--set=" + sharedKinds, "--timeout=2m"}
	if output, err := r.helm(off...); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, r.told())
	}
	mentions(t, r.told(), "freed    ")
	r.isLetGo("ceased-lobby")
	for query, expected := range map[string]string{
		"pinhole/theirs --namespace=ceased-tenant": `["example.com/audit"]`,
		"natpool/ceased": ``,
		"lease/ceased-pinhole-controller --namespace=ceased": ``,
	} {
		arguments := append([]string{"get", "--ignore-not-found", "--output=jsonpath={.metadata.finalizers}"}, strings.Fields(query)...)
		if left := r.kubectl("", arguments...); left.Stdout != expected {
			t.Errorf("%s has %s%s", query, left.Stdout, left.Stderr)
		}
	}
	want := []string{"list pods", "patch pods", "list natpools", "patch natpools ceased", "list pinholes", "patch pinholes theirs",
		"delete leases ceased-pinhole-controller"}
	if asked := r.had("ceased:ceased-pinhole-claims-off"); !slices.Equal(asked, want) {
		t.Errorf("it asked to\n%s\nexpected\n%s", strings.Join(asked, "\n"), strings.Join(want, "\n"))
	}
	// Nothing tells of a controller any more, so the next upgrade has nothing to do.
	before := r.told()
	if output, err := r.helm(off...); err != nil || r.told() != before {
		t.Errorf("%v\n%s\n%s", err, output, r.told())
	}
	for _, command := range [][]string{
		{"delete", "natpool/ceased", "--timeout=10s"},
		{"patch", "pinholes", "theirs", "--namespace=ceased-tenant", "--type=merge", "--patch={\"metadata\":{\"finalizers\":null}}"},
		{"delete", "pinholes", "theirs", "--namespace=ceased-tenant", "--timeout=10s"},
		{"delete", "namespace", "ceased-tenant", "--wait=false"},
	} {
		if result := r.kubectl("", command...); !result.Succeeded {
			t.Errorf("kubectl %v: %s", command, result.Stderr)
		}
	}
	if output, err := r.helm("uninstall", "ceased", "--timeout=2m", "--wait"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, r.told())
	}
	r.hasLeft("ceased", "ceased")
}

func TestUninstallGivesUpAtItsDeadlineAndGoesOnWhenItIsRunAgain(t *testing.T) {
	r := installed(t, "stuck", "uninstall.deadlineSeconds=8")
	r.awaitReady("agent", 3)
	r.stick("node-b", "iptables-legacy-save: cannot open the lock")
	if output, err := r.helm("uninstall", "stuck", "--timeout=60s"); err == nil {
		t.Fatalf("it succeeded:\n%s", output)
	}
	mentions(t, r.told(), "not finished after 8 s: these nodes are not clean: node-b: stuck-pinhole-cleanup-",
		"ended with exit status 1: iptables-legacy-save: cannot open the lock", "run it again (helm uninstall")
	left := r.kubectl("", "get", "validatingwebhookconfigurations,mutatingwebhookconfigurations", "--output=name")
	if strings.Contains(left.Stdout, "stuck") {
		t.Errorf("the webhook still stands in the way: %s", left.Stdout)
	}
	r.stick("node-b", "")
	if output, err := r.helm("uninstall", "stuck", "--timeout=60s", "--wait"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, r.told())
	}
	mentions(t, r.told(), "cleaned  3 nodes: node-a, node-b, node-c")
	r.hasLeft("stuck", "stuck")
}

func TestUninstallWorksWithoutAgents(t *testing.T) {
	for name, arrange := range map[string]func(*testing.T) release{
		"disabled": func(t *testing.T) release { return installed(t, "disabled", "agent.enabled=false") },
		"switched-off": func(t *testing.T) release {
			return installed(t, "switched-off", "agent.enabled=false", "uninstall.cleanNodes=true")
		},
		"deleted": func(t *testing.T) release {
			r := installed(t, "deleted")
			r.awaitReady("agent", 3)
			if result := r.kubectl("", "delete", "daemonset", "--namespace=deleted", "deleted-pinhole-agent", "--wait"); !result.Succeeded {
				t.Fatal(result.Stderr)
			}
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := arrange(t)
			if output, err := r.helm("uninstall", name, "--timeout=60s", "--wait"); err != nil {
				t.Fatalf("%v\n%s\n%s", err, output, r.told())
			}
			want := "cleaned  3 nodes: node-a, node-b, node-c"
			if name == "disabled" {
				want = "The nodes were left as they are, as asked."
			}
			mentions(t, r.told(), want)
			r.hasLeft(name, name)
		})
	}
}

func TestWithoutHelmAJobRemovesWhatWasApplied(t *testing.T) {
	cluster, err := removal()
	if err != nil {
		t.Fatal(err)
	}
	r := release{kubelets: startKubelets(t, cluster, lab.WebhookNamespace)}
	for _, node := range []string{"node-a", "node-b", "node-c"} {
		r.node(node, true)
	}
	r.awaitReady("agent", 3)
	const job = "../../webhook-config/uninstall/job.yaml"
	for _, command := range [][]string{
		{"apply", "-f", job},
		{"wait", "--namespace=pinhole-system", "job/pinhole-uninstall", "--for=condition=Complete", "--timeout=60s"},
		{"delete", "-f", "../../webhook-config/self.yaml", "-f", job, "--ignore-not-found", "--timeout=60s"},
	} {
		if result := r.kubectl("", command...); !result.Succeeded {
			t.Fatalf("kubectl %s: %s\n%s", strings.Join(command, " "), result.Stderr, r.told())
		}
	}
	mentions(t, r.told(), "cleaned  3 nodes: node-a, node-b, node-c")
	r.hasLeft("pinhole", lab.WebhookNamespace)
	if result := r.kubectl("", "get", "namespace", lab.WebhookNamespace); result.Succeeded {
		t.Error(fmt.Sprint("the namespace is left: ", result.Stdout))
	}
}

// A DaemonSet would start it again and again otherwise.
func TestACleanupStaysUntilItIsToldToEnd(t *testing.T) {
	var output lockedBuffer
	command := exec.Command(os.Getenv("PINHOLE_BIN"), "cleanup", "--stay", "--xtables-lock-file="+filepath.Join(t.TempDir(), "lock"))
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	err := lab.Poll(20*time.Second, func() error {
		if !strings.Contains(output.String(), "Nothing to remove") {
			return fmt.Errorf("it said only %q", output.String())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("it ended by itself (%v): %s", err, output.String())
	case <-time.After(500 * time.Millisecond):
	}
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v: %s", err, output.String())
		}
	case <-time.After(10 * time.Second):
		t.Errorf("it goes on after SIGTERM: %v: %s", command.Process.Kill(), output.String())
	}
}

// lockedBuffer is written by a process while a test reads it.
type lockedBuffer struct {
	mutex sync.Mutex
	text  strings.Builder
}

func (b *lockedBuffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(text)
}

func (b *lockedBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}
