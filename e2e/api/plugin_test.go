package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// plugin runs `kubectl pinhole` in the test's namespace.
func (d desk) plugin(arguments ...string) lab.Result {
	d.t.Helper()
	// kubectl takes its own flags only after the plugin's name.
	result, err := d.cluster.Kubectl("", append(append([]string{"pinhole"}, arguments...), "--namespace="+d.namespace)...)
	if err != nil {
		d.t.Fatal(err)
	}
	return result
}

func (d desk) asked(arguments ...string) string {
	d.t.Helper()
	result := d.plugin(arguments...)
	if !result.Succeeded {
		d.t.Fatalf("kubectl pinhole %s ends with %d:\n%s%s", strings.Join(arguments, " "), result.Code, result.Stdout, result.Stderr)
	}
	return result.Stdout
}

func TestKubectlFindsThePluginAndListsAndExplainsPorts(t *testing.T) {
	d := newDesk(t, "plugin")
	d.accepted(pod("web", expose("203.0.113.60:8080:80"), "nodeName: node-1"))
	d.accepted(workload("Deployment", "later", expose("203.0.113.60:8081:80"), "replicas: 0"))
	d.accepted(pod("plain", nil))
	d.reportStatus("web", "Running")

	listed := d.asked("list")
	if lines := strings.Split(strings.TrimSpace(listed), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "EXTERNAL ") {
		t.Fatalf("expected a head and one line:\n%s", listed)
	}
	// No agent runs on the node: neither kubelet nor scheduler is there to start one.
	d.mentions(listed, "203.0.113.60:8080/tcp", "10.244.1.9:80", "node-1", "Pod plugin/web", "NoAgent")
	if strings.Contains(listed, "\x1b") {
		t.Errorf("colours are not for pipes: %q", listed)
	}
	d.another("plugin-elsewhere").accepted(pod("far", expose("203.0.113.62:8080:80")))
	d.mentions(d.asked("list", "--all-namespaces", "-o", "wide"), "POD", "WHY", "plugin/web", "plugin-elsewhere/far")
	if other := d.plugin("list", "-l", "app=nobody"); !other.Succeeded || other.Stdout != "" || !strings.Contains(other.Stderr, "No pod in namespace plugin asks for a port") {
		t.Errorf("a selector that selects nothing: %+v", other)
	}
	var list struct {
		Items []struct{ External, Node, State string }
	}
	if err := json.Unmarshal([]byte(d.asked("list", "-o", "json")), &list); err != nil || len(list.Items) != 1 ||
		list.Items[0].External != "203.0.113.60:8080/tcp" || list.Items[0].State != "NoAgent" {
		t.Errorf("-o json is %+v (%v)", list, err)
	}
	d.mentions(d.asked("list", "-o", "yaml"), `- external: "203.0.113.60:8080/tcp"`)

	d.mentions(d.asked("explain", "pod/web"), "Pod plugin/web", "node-1", "NoAgent", "no agent of Pinhole runs on the node")
	d.mentions(d.asked("explain", "deployment.apps/later"), "granted by the rules of admission", "none that asks for ports")
	d.mentions(d.asked("explain", "pod/plain"), "for no port")
	d.mentions(d.asked("explain", "203.0.113.60:8080"), "nobody, although it is asked for", "pod plugin/web on node-1")
	older := d
	older.namespace = "older"
	d.mentions(older.asked("explain", "deployment/untouched"), "refused: ", "22/tcp: is restricted in this cluster")
	d.mentions(d.asked("explain", "192.0.2.99:22"), "would be refused: 192.0.2.99:22/tcp: is restricted", "choose another external port")

	if nobody := d.plugin("explain", "pod/nobody"); nobody.Code != 2 || !strings.Contains(nobody.Stderr, "there is no pod/nobody in namespace plugin") {
		t.Errorf("a pod that does not exist: %+v", nobody)
	}
	if wrong := d.plugin("explain", "web"); wrong.Code != 2 || !strings.Contains(wrong.Stderr, "write pod/web") {
		t.Errorf("neither an object nor a port: %+v", wrong)
	}
}

func TestWhoeverMayReadOneNamespaceIsToldWhatStaysUnknown(t *testing.T) {
	d := newDesk(t, "tenant")
	d.accepted(pod("web", expose("203.0.113.60:8090:80"), "nodeName: node-1"))
	d.succeeds("", "create", "serviceaccount", "reader")
	d.succeeds("", "create", "role", "reader", "--verb=get,list", "--resource=pods,events")
	d.succeeds("", "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=tenant:reader")
	token := strings.TrimSpace(d.succeeds("", "create", "token", "reader").Stdout)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := strings.Replace(d.cluster.AdminKubeconfig(), "admin-token", token, 1)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.eventually(func() error {
		listed, err := d.cluster.KubectlWith(kubeconfig, "", "pinhole", "list", "--namespace=tenant")
		if err != nil {
			return err
		}
		if !listed.Succeeded || !strings.Contains(listed.Stdout, "203.0.113.60:8090/tcp") {
			return fmt.Errorf("a reader of the namespace: %+v", listed)
		}
		d.mentions(listed.Stderr, "pods of other namespaces cannot be read", "the agents cannot be found")
		return nil
	})
	examined, err := d.cluster.KubectlWith(kubeconfig, "", "pinhole", "doctor", "--namespace=tenant")
	if err != nil {
		t.Fatal(err)
	}
	d.mentions(examined.Stdout, "unchecked", "could not be checked")
	if examined.Code != 0 {
		t.Errorf("what could not be checked is no problem: %+v", examined)
	}
}

// What an agent programmed is seen even where nobody can ask it: by its Events.
func TestWhatAnAgentProgrammedIsListedAndExplained(t *testing.T) {
	d := newQuietDesk(t, "plugin-agent")
	if err := lab.AddNodeAddress("203.0.113.61"); err != nil {
		t.Fatal(err)
	}
	agent, err := d.cluster.StartAgent("node-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	d.accepted(pod("smtp", expose("203.0.113.61:2527:25"), "nodeName: node-2"))
	d.reportStatus("smtp", "Running")
	d.eventually(func() error {
		if listed := d.asked("list"); !strings.Contains(listed, "Reported") {
			return fmt.Errorf("%s", listed)
		}
		return nil
	})
	d.mentions(d.asked("explain", "pod/smtp"), "203.0.113.61:2527/tcp -> 10.244.1.9:25  Reported", "said in an Event")
	d.mentions(d.asked("explain", "203.0.113.61:2527"), "holder     Pod plugin-agent/smtp, on node-2")
	if err := agent.Stop(agentPatience); err != nil {
		t.Error(err)
	}
}

func TestThePluginTellsOfAutomaticPortsAndPinholesOfUsers(t *testing.T) {
	t.Parallel()
	c := newClerk(t, "told")
	plugin := func(arguments ...string) string {
		t.Helper()
		said, succeeded := c.kubectl("", append([]string{"pinhole"}, arguments...)...)
		if !succeeded {
			t.Fatalf("kubectl pinhole %v:\n%s", arguments, said)
		}
		return said
	}
	has := func(said string, expected ...string) error {
		for _, one := range expected {
			if !strings.Contains(said, one) {
				return fmt.Errorf("%q is not in\n%s", one, said)
			}
		}
		return nil
	}
	c.must(http.MethodPost, poolsPath, natPool("told", object{
		"addresses": []string{"198.51.100.57"}, "ports": []object{{"first": 30500, "last": 30500}},
		"namespaces": object{"names": []string{"told"}},
	}), nil)
	if code, said := c.create("", fromPool("first", "auto:80", "told")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	c.letGo("first")
	if code, said := c.create("", fromPool("second", "auto:80", "told")); code != http.StatusCreated {
		t.Fatalf("HTTP %d: %s", code, said)
	}
	c.applied(leads("web", "192.0.2.87", "{port: 443}"))
	c.eventuallyShown("web", "False NoService")
	c.eventuallyShown("second", "False NoFreePort")

	if err := has(plugin("list", "-o", "wide"),
		"198.51.100.57:30500/tcp", "Pod told/first", "Unscheduled",
		"auto:80/tcp", "Full", "waits at its scheduling gate pinhole.dev/endpoints",
		"192.0.2.87:443/tcp", "Service web:443", "Pinhole told/web", "Unserved", "there is no Service web",
	); err != nil {
		t.Error(err)
	}
	if err := has(plugin("list", "-o", "json"), `"name": "web"`, `"state": "Full"`); err != nil {
		t.Error(err)
	}
	if err := has(plugin("explain", "pod/second"), "auto:80/tcp  Full", "NatPool told"); err != nil {
		t.Error(err)
	}
	if err := has(plugin("explain", "pinhole/web"), "leads to   Service web", "Unserved", "there is no Service web"); err != nil {
		t.Error(err)
	}
	if err := has(plugin("explain", "198.51.100.57:30500"),
		"claim      v4-198-51-100-57-tcp-30500 for Pod told/first, ", "pool told", "pod told/first",
	); err != nil {
		t.Error(err)
	}
	if err := has(plugin("explain", "192.0.2.87:443"), "for Pinhole told/web", "holder     Pinhole told/web, by its claim"); err != nil {
		t.Error(err)
	}
}

func TestDoctorProvesByADryRunThatTheWebhookRefuses(t *testing.T) {
	d := newDesk(t, "doctor")
	found := d.plugin("doctor")
	// The lab has neither kubelets nor a scheduler, so no pod of Pinhole's own runs, and doctor must say that.
	if found.Code != 1 {
		t.Errorf("it ends with %d, and 1 means that there are problems: %s", found.Code, found.Stderr)
	}
	d.mentions(found.Stdout,
		`a pod in namespace doctor that asks for "22" is refused by the webhook`,
		"with its defaults written to pinhole.dev/effective",
		// The lab's authority lives for a day.
		"the caBundle of pods.pinhole.dev of ValidatingWebhookConfiguration pinhole expires on ",
		"0 of 2 replicas of deployment/pinhole-webhook in pinhole-system are ready",
		"no agent runs on node-1",
	)
	if stored := d.pods(); len(stored) != 0 {
		t.Errorf("a dry run stores nothing, but there is %+v", stored)
	}
	excluded := d
	excluded.namespace = "kube-system"
	d.mentions(excluded.plugin("doctor").Stdout, `a pod in namespace default that asks for "22" is refused by the webhook`)

	var report struct {
		Problems int
		Findings []struct{ Verdict, Seen, Fix string }
	}
	if err := json.Unmarshal([]byte(d.plugin("doctor", "-o", "json").Stdout), &report); err != nil || report.Problems == 0 {
		t.Errorf("-o json is %+v (%v)", report, err)
	}
	for _, finding := range report.Findings {
		if finding.Verdict == "problem" && finding.Fix == "" {
			t.Errorf("a problem without a fix: %s", finding.Seen)
		}
	}
	if wrong := d.plugin("doctor", "--node-image=x"); wrong.Code != 2 {
		t.Errorf("--node-image without --preflight ends with %d", wrong.Code)
	}

	completed, err := d.cluster.Kubectl("", "__complete", "pinhole", "doctor", "--pre")
	if err != nil {
		t.Fatal(err)
	}
	d.mentions(completed.Stdout, "--preflight\tExamine", ":4")

	preflight := d.plugin("doctor", "--preflight")
	d.mentions(preflight.Stdout, "no known network was found", "not looked at: the flavour of iptables", "2 Linux nodes")
}

// doctorFindsEveryReplicaDead is a part of the tests with a webhook that comes and goes.
func doctorFindsEveryReplicaDead(d desk) {
	found := d.plugin("doctor")
	if found.Code != 1 {
		d.t.Errorf("doctor ends with %d", found.Code)
	}
	d.mentions(found.Stdout, "the API server cannot call the webhook", "no endpoints available for service", "-> no replica is ready")
	if strings.Contains(found.Stdout, "is refused by the webhook") {
		d.t.Errorf("a dead webhook refuses nothing:\n%s", found.Stdout)
	}
}
