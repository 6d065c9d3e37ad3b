package chart

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

// Whoever asks does not check who answers, as the chart's PodMonitor does not.
var credulous = &http.Client{
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	Timeout:   10 * time.Second,
}

// ask is the status and the text of an answer.
func ask(url, token string) (int, string, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := credulous.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

func TestTheClusterSaysWhoReadsTheAgentsMetrics(t *testing.T) {
	cluster, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	const namespace = "watched"
	rendered := render(t, "agent.metrics.mode=authenticated", "agent.metrics.address=127.0.0.1")
	manifests := strings.ReplaceAll(rendered, "pinhole-system", namespace)
	manifests = "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + namespace + "}\n---\n" + strings.ReplaceAll(manifests, "name: pinhole", "name: watched-pinhole")
	var rights []string
	for _, object := range objects(t, manifests) {
		if slices.Contains([]string{"Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"}, object.Kind) {
			rights = append(rights, object.text)
		}
	}
	if result := kubectl(t, strings.Join(rights, "\n---\n"), "apply", "-f", "-"); !result.Succeeded {
		t.Fatal(result.Stderr)
	}
	startAgent(t, cluster, namespace, find(t, objects(t, rendered), "DaemonSet", "pinhole-agent"))

	const secure, plain = "https://127.0.0.1:8486/metrics", "http://127.0.0.1:8484"
	err = lab.Poll(30*time.Second, func() error { _, _, err := ask(secure, ""); return err })
	if err != nil {
		t.Fatal(err)
	}
	token, err := cluster.Token(namespace, "default")
	if err != nil {
		// Nothing makes the default ServiceAccount here.
		if result := kubectl(t, "", "create", "serviceaccount", "default", "--namespace="+namespace); !result.Succeeded {
			t.Fatal(result.Stderr)
		}
		if token, err = cluster.Token(namespace, "default"); err != nil {
			t.Fatal(err)
		}
	}
	for _, question := range []struct {
		url, token string
		code       int
		text       string
	}{
		{secure, "", http.StatusUnauthorized, "show the token"},
		{secure, "made-up", http.StatusUnauthorized, "show the token"},
		{secure, token, http.StatusForbidden, "system:serviceaccount:watched:default may not read the metrics; bind it to a ClusterRole with nonResourceURLs: [/metrics]"},
		{plain + "/metrics", token, http.StatusNotFound, ""},
		{plain + "/healthz", "", http.StatusOK, "ok"},
	} {
		code, text, err := ask(question.url, question.token)
		if err != nil || code != question.code || !strings.Contains(text, question.text) {
			t.Errorf("%s with the token %.10q: %d %s %v, expected %d %s", question.url, question.token, code, text, err, question.code, question.text)
		}
	}

	// The command at the head of the ClusterRole.
	bind := []string{"create", "clusterrolebinding", "prometheus", "--clusterrole=watched-pinhole-scraper", "--serviceaccount=" + namespace + ":default"}
	if result := kubectl(t, "", bind...); !result.Succeeded {
		t.Fatal(result.Stderr)
	}
	err = lab.Poll(20*time.Second, func() error {
		code, text, err := ask(secure, token)
		if err == nil && (code != http.StatusOK || !strings.Contains(text, "pinhole_build_info")) {
			err = errors.New(text)
		}
		return err
	})
	if err != nil {
		t.Fatalf("with the right given, the metrics are still not shown: %v", err)
	}
	before := reviews(t, cluster, namespace)
	for range 20 {
		if code, text, err := ask(secure, token); code != http.StatusOK {
			t.Fatal(code, text, err)
		}
	}
	if after := reviews(t, cluster, namespace); after != before || before == 0 {
		t.Errorf("20 scrapes of a known reader asked the API server %d times, after %d times before", after-before, before)
	}
}

// startAgent runs the program with what a rendered DaemonSet gives it, and with the rights of its ServiceAccount.
func startAgent(t *testing.T, cluster *lab.Cluster, namespace string, daemonSet object) {
	t.Helper()
	token, err := cluster.Token(namespace, "watched-pinhole-agent")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(cluster.KubeconfigWith(token)), 0o600); err != nil {
		t.Fatal(err)
	}
	container := daemonSet.Spec.Template.Spec.Containers[0]
	command := exec.Command(os.Getenv("PINHOLE_BIN"), append(slices.Clone(container.Args), "--dry-run", "--kubeconfig="+kubeconfig)...)
	command.Env = append(os.Environ(), "PINHOLE_NODE_NAME=node-1")
	for _, variable := range container.Env {
		if variable.Value != "" {
			command.Env = append(command.Env, variable.Name+"="+variable.Value)
		}
	}
	var output lockedBuffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			t.Log(output.String())
		}
	})
}

// reviews is how often the agent asked whose token it sees, and what that one may.
func reviews(t *testing.T, cluster *lab.Cluster, namespace string) int {
	t.Helper()
	events, err := cluster.Audit()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, event := range events {
		if event.User.Username != fmt.Sprintf("system:serviceaccount:%s:watched-pinhole-agent", namespace) {
			continue
		}
		if event.ResponseStatus.Code == http.StatusForbidden {
			t.Errorf("the agent was forbidden to %s %s", event.Verb, event.ObjectRef.Resource)
		}
		if event.ObjectRef.Resource == "tokenreviews" || event.ObjectRef.Resource == "subjectaccessreviews" {
			count++
		}
	}
	return count
}
