package chart

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

func TestMain(m *testing.M) {
	if err := lab.EnterSandbox(); err != nil {
		fmt.Fprintln(os.Stderr, "the chart tests cannot run:", err)
		os.Exit(1)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// A cluster in which the chart's plain manifests are installed; nothing runs in it.
var cluster = sync.OnceValues(func() (*lab.Cluster, error) {
	return lab.StartCluster(lab.Options{
		Name: "chart", Network: 9, APIServers: 1, Manifests: "../../webhook-config/self.yaml",
	})
})

func kubectl(t *testing.T, stdin string, arguments ...string) lab.Result {
	t.Helper()
	cluster, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	result, err := cluster.Kubectl(stdin, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// The API server knows no kinds of others here, so these are left to their own schema.
func isForeign(object object) bool {
	return strings.HasPrefix(object.APIVersion, "cert-manager.io/") || strings.HasPrefix(object.APIVersion, "monitoring.coreos.com/")
}

func TestTheAPIServerAcceptsWhatTheChartRenders(t *testing.T) {
	for name, settings := range matrix {
		var documents []string
		for _, object := range objects(t, render(t, settings...)) {
			if !isForeign(object) {
				documents = append(documents, object.text)
			}
		}
		if len(documents) < 8 {
			t.Errorf("%s: only %d objects", name, len(documents))
		}
		result := kubectl(t, strings.Join(documents, "\n---\n"), "apply", "--dry-run=server", "--validate=strict", "-f", "-")
		if !result.Succeeded {
			t.Errorf("%s: %s", name, result.Stderr)
		}
		if strings.Contains(result.Stderr, "Warning") {
			t.Errorf("%s: %s", name, result.Stderr)
		}
	}
}

// A token that is of no pod says nothing of where its agent runs.
func TestAnAgentOutsideTheClusterKeepsTheNatNodesThatTheValuesName(t *testing.T) {
	policies := func(text string) string {
		var documents []string
		for _, object := range objects(t, text) {
			if strings.Contains(object.Metadata.Name, "agent-nat-node") {
				documents = append(documents, object.text)
			}
		}
		return strings.Join(documents, "\n---\n")
	}
	writes := func(name string) (string, bool) {
		natNode := "{apiVersion: pinhole.dev/v1alpha1, kind: NatNode, metadata: {name: " + name + "}, spec: {}}"
		result := kubectl(t, natNode, "apply", "--as=system:serviceaccount:pinhole-system:pinhole-agent", "--server-side", "-f", "-")
		return result.Stderr, result.Succeeded
	}
	t.Cleanup(func() { kubectl(t, "", "delete", "natnodes", "--all") })
	for _, step := range []struct {
		settings []string
		others   bool
	}{{nil, true}, {[]string{"claims.gateways={gw-1,gw-2}"}, false}} {
		text := policies(render(t, append(step.settings, "claims.enabled=true")...))
		if result := kubectl(t, text, "apply", "-f", "-"); !result.Succeeded {
			t.Fatal(result.Stderr)
		}
		// A policy counts a moment after it is stored.
		if err := lab.Poll(20*time.Second, func() error {
			for name, expected := range map[string]bool{"gw-1": true, "gw-2": true, "other": step.others} {
				said, allowed := writes(name)
				if allowed != expected || (!allowed && !strings.Contains(said, "claims.gateways names: gw-1, gw-2")) {
					return fmt.Errorf("%v: the NatNode %s: %v %s", step.settings, name, allowed, said)
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// The strictest level of Pod Security admits the webhook, whatever its namespace says for the agent's sake.
func TestTheWebhooksPodsNeedNoPrivilege(t *testing.T) {
	namespace := "apiVersion: v1\nkind: Namespace\nmetadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}\n"
	if result := kubectl(t, namespace, "apply", "-f", "-"); !result.Succeeded {
		t.Fatal(result.Stderr)
	}
	for _, mode := range []string{"self", "cert-manager", "files"} {
		workload := find(t, objects(t, render(t, "certificates.mode="+mode)), "Deployment", "pinhole-webhook")
		template := workload.whole["spec"].(map[string]any)["template"].(map[string]any)
		pod := normalPod(t, template)
		if result := kubectl(t, pod, "apply", "--dry-run=server", "--namespace=strict", "-f", "-"); !result.Succeeded {
			t.Errorf("%s: %s", mode, result.Stderr)
		}
	}
}

func normalPod(t *testing.T, template map[string]any) string {
	t.Helper()
	template["apiVersion"], template["kind"] = "v1", "Pod"
	template["metadata"].(map[string]any)["name"] = "webhook"
	return plain(t, template)
}

// Helm makes nothing of a kind that comes with the same release, unless a hook does.
func TestTheFirstInstallWithClaimsMakesThePoolThatTheNextUpgradesOwn(t *testing.T) {
	cluster, err := lab.StartCluster(lab.Options{Name: "first", Network: 11, APIServers: 1, Manifests: "../../webhook-config/self.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	r := release{kubelets: &kubelets{t: t, cluster: cluster}, name: "first", kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if err := os.WriteFile(r.kubeconfig, []byte(cluster.AdminKubeconfig()), 0o600); err != nil {
		t.Fatal(err)
	}
	// No kind of ours is known there yet.
	if result := r.kubectl("", "delete", "crd", "--all", "--timeout=30s"); !result.Succeeded {
		t.Fatal(result.Stderr)
	}
	const all = "1-65535"
	var uid string
	for _, step := range []struct {
		command []string
		ports   string
	}{
		{[]string{"install", "first", chart, "--create-namespace", "--set=claims.enabled=true"}, all},
		{[]string{"upgrade", "first", chart, "--reset-then-reuse-values"}, all},
		{[]string{"upgrade", "first", chart, "--reset-then-reuse-values", "--set=claims.defaultPool.spec.ports[0].first=1024,claims.defaultPool.spec.ports[0].last=65535"}, "1024-65535"},
		{[]string{"uninstall", "first", "--no-hooks"}, "1024-65535"},
		// What was kept is taken over as it is.
		{[]string{"install", "first", chart, "--set=claims.enabled=true"}, "1024-65535"},
	} {
		if output, err := r.helm(step.command...); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		found := r.kubectl("", "get", "natpool", "node-addresses", "--output=jsonpath={.metadata.uid} {.spec.ports[0].first}-{.spec.ports[0].last}")
		now, ports, _ := strings.Cut(found.Stdout, " ")
		if !found.Succeeded || ports != step.ports || (uid != "" && now != uid) {
			t.Fatalf("after helm %v the pool is %q, expected ports %s of the same object as before\n%s", step.command, found.Stdout, step.ports, found.Stderr)
		}
		uid = now
	}
}

// What the webhook wrote at run time is not the chart's to take back, and neither way makes anything anew that runs.
func TestUpgradeFromThePreviousChartAndRollbackKeepWhatWasMadeAtRunTime(t *testing.T) {
	r := install(t, "second", "testdata/previous.tgz")
	r.awaitReady("agent", 3)
	const bundle = "LS0tLS1CRUdJTg=="
	trust := func(webhooks ...string) string {
		var entries []string
		for _, webhook := range webhooks {
			entries = append(entries, fmt.Sprintf(`{"name":%q,"clientConfig":{"caBundle":%q}}`, webhook, bundle))
		}
		return fmt.Sprintf(`{"webhooks":[%s]}`, strings.Join(entries, ","))
	}
	for _, patch := range [][]string{
		{"secret", "second-pinhole-webhook-ca", "--namespace=second", `--patch={"data":{"phase":"c3RhYmxl"}}`},
		{"mutatingwebhookconfiguration", "second-pinhole", "--patch=" + trust("mutate.pinhole.dev")},
		{"validatingwebhookconfiguration", "second-pinhole", "--patch=" + trust("pods.pinhole.dev", "workloads.pinhole.dev")},
	} {
		if result := r.kubectl("", append([]string{"patch", "--type=strategic"}, patch...)...); !result.Succeeded {
			t.Fatal(result.Stderr)
		}
	}
	look := func() string {
		var seen strings.Builder
		for _, question := range [][]string{
			{"secret", "second-pinhole-webhook-ca", "--namespace=second", "--output=jsonpath={.data}"},
			{"mutatingwebhookconfiguration", "second-pinhole", "--output=jsonpath={.webhooks[*].clientConfig.caBundle}"},
			{"validatingwebhookconfiguration", "second-pinhole", "--output=jsonpath={.webhooks[*].clientConfig.caBundle}"},
			{"deployments,daemonsets,services,secrets", "--namespace=second", "--output=jsonpath={.items[*].metadata.uid}", "--selector=app.kubernetes.io/name=pinhole"},
		} {
			seen.WriteString(r.kubectl("", append([]string{"get"}, question...)...).Stdout + "\n")
		}
		return seen.String()
	}
	want := look()
	if !strings.HasPrefix(want, fmt.Sprintf("{\"phase\":\"c3RhYmxl\"}\n%s\n%s %s\n", bundle, bundle, bundle)) {
		t.Fatalf("before any upgrade:\n%s", want)
	}
	for _, step := range [][]string{
		{"upgrade", "second", chart, "--reset-then-reuse-values", "--set=" + sharedKinds},
		{"upgrade", "second", chart, "--reset-then-reuse-values", "--set=webhook.timeoutSeconds.validating=4,commonLabels.team=net,agent.metrics.mode=authenticated"},
		{"rollback", "second", "1"},
		{"rollback", "second", "3"},
	} {
		if output, err := r.helm(append(step, "--wait", "--timeout=90s")...); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		if got := look(); got != want {
			t.Errorf("after helm %s:\n%s\nbefore:\n%s", strings.Join(step, " "), got, want)
		}
		if hooks := r.kubectl("", "get", "jobs,serviceaccounts,configmaps", "--namespace=second", "--selector=app.kubernetes.io/component=uninstall", "--output=name"); hooks.Stdout != "" {
			t.Errorf("after helm %s hooks are there that only removal needs: %s", strings.Join(step, " "), hooks.Stdout)
		}
	}
	if output, err := r.helm("uninstall", "second", "--wait", "--timeout=90s"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, r.told())
	}
	r.hasLeft("second", "second")
}

// emergency is the command that docs/operations.md gives for a webhook that stands in the way.
func emergency(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "<!-- the emergency command -->\n```sh\n")
	command, _, _ := strings.Cut(block, "\n```")
	words := strings.Fields(command)
	if len(words) < 3 || words[0] != "kubectl" || strings.Contains(command, "\n") {
		t.Fatalf("docs/operations.md does not mark one kubectl command as the emergency command: %q", command)
	}
	return words[1:]
}

// No replica of the webhook runs here, as in a cluster whose webhook is broken.
func TestTheEmergencyCommandMakesAnnotatedPodsAdmissibleAgain(t *testing.T) {
	pod := func(name string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, annotations: {pinhole.dev/expose: \"8080\"}}\n"+
			"spec: {containers: [{name: web, image: web}]}\n", name)
	}
	if result := kubectl(t, pod("before"), "create", "--namespace=default", "-f", "-"); result.Succeeded || !strings.Contains(result.Stderr, "pods.pinhole.dev") {
		t.Fatalf("with the webhook dead an annotated pod should be refused: %s%s", result.Stdout, result.Stderr)
	}
	if result := kubectl(t, "", emergency(t)...); !result.Succeeded || strings.Count(result.Stdout, "deleted") < 2 {
		t.Fatalf("%s%s", result.Stdout, result.Stderr)
	}
	err := lab.Poll(10*time.Second, func() error {
		if result := kubectl(t, pod("after"), "create", "--namespace=default", "-f", "-"); !result.Succeeded {
			return errors.New(result.Stderr)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// As the page says, applying the manifests brings admission back.
	if result := kubectl(t, "", "apply", "-f", "../../webhook-config/self.yaml"); !result.Succeeded {
		t.Fatal(result.Stderr)
	}
	err = lab.Poll(10*time.Second, func() error {
		if result := kubectl(t, pod("again"), "create", "--dry-run=server", "--namespace=default", "-f", "-"); result.Succeeded {
			return errors.New("an annotated pod is still admitted without the webhook")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
