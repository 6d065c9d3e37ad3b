package kind

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The suite's own installation is that of a stranger: the chart without any value. The scenarios here take it away, install
// in another way, and put it back.
const chart = "../../chart"

func install(t *testing.T, settings ...string) {
	t.Helper()
	if firewall := os.Getenv("E2E_FIREWALL"); firewall != "" {
		settings = append(settings, "--set", "agent.flags.firewall="+firewall)
	}
	if os.Getenv("E2E_CLAIMS") != "" {
		settings = append(settings, "--set", "claims.enabled=true")
	}
	helm(t, append([]string{"upgrade", "--install", "pinhole", chart, "--wait", "--timeout", "180s"}, settings...)...)
	refusesRestrictedPorts(t)
}

// withoutPinhole takes the suite's installation away until the end of a scenario.
func withoutPinhole(t *testing.T) {
	t.Helper()
	putBackAtTheEnd(t)
	helm(t, "uninstall", "pinhole", "--wait", "--timeout", "300s")
	kubectl(t, "", "delete", "namespace", system, "--timeout=120s")
}

// putBackAtTheEnd puts the suite's installation back at the end of a scenario, whatever that did to it.
func putBackAtTheEnd(t *testing.T) {
	t.Helper()
	// What `install` noted there, so that it knows which images the nodes have.
	note := kubectl(t, "", "get", "namespace", system, "--output", `jsonpath={.metadata.annotations.e2e-images}`)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t)
		}
		_, _ = command("", "helm", "uninstall", "pinhole", "--namespace", system, "--wait", "--ignore-not-found")
		kubectl(t, "", "delete", "namespace", system, "--ignore-not-found", "--timeout=120s")
		kubectl(t, "", "delete", "--filename", "../../webhook-config/self.yaml", "--ignore-not-found", "--timeout=120s")
		kubectl(t, "", "create", "namespace", system)
		install(t)
		kubectl(t, "", "annotate", "namespace", system, "e2e-images="+note)
	})
}

// doesTheMainJob tries what everybody installs it for: a port that is granted, reached and given back, and one that is
// refused at apply.
func doesTheMainJob(t *testing.T, namespace string, port int) {
	t.Helper()
	s := newScene(t, namespace)
	refusesRestrictedPorts(t)
	address := s.serves(port)
	if effective := s.onlyPod("app=web").Metadata.Annotations["pinhole.dev/effective"]; effective == "" {
		t.Error("the defaults were not written: the mutating webhook was not called")
	}
	s.kubectl("delete", "pod", "web", "--grace-period=1")
	unreachable(t, address, port)
}

func TestInstalledFromOnePlainFileItDoesTheMainJob(t *testing.T) {
	withoutPinhole(t)
	kubectl(t, "", "apply", "--filename", "../../webhook-config/self.yaml")
	eventually(t, 120*time.Second, "it is ready", installed)
	doesTheMainJob(t, "plain-file", 8070)
}

func TestInstalledWithACertificateFromFilesItDoesTheMainJob(t *testing.T) {
	withoutPinhole(t)
	directory := t.TempDir()
	if output, err := command("", "../../certs/development-ca", directory); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	kubectl(t, "", "create", "namespace", system)
	kubectl(t, "", "--namespace", system, "create", "secret", "tls", "pinhole-webhook-tls",
		"--cert", filepath.Join(directory, "tls.crt"), "--key", filepath.Join(directory, "tls.key"))
	install(t, "--set", "certificates.mode=files", "--set-file", "certificates.files.caBundle="+filepath.Join(directory, "ca.crt"))
	doesTheMainJob(t, "from-files", 8071)
}

func TestInstalledWithCertManagerItDoesTheMainJob(t *testing.T) {
	definitions := filepath.Join(os.Getenv("E2E_CERT_MANAGER"), "crds.yaml")
	t.Cleanup(func() {
		kubectl(t, "", "delete", "--filename", "cert-manager.yaml", "--ignore-not-found")
		kubectl(t, "", "delete", "--filename", definitions, "--ignore-not-found", "--timeout=60s")
	})
	withoutPinhole(t)
	// Too long for the annotation that a client's apply keeps.
	kubectl(t, "", "apply", "--server-side", "--filename", definitions)
	kubectl(t, "", "wait", "--for=condition=Established", "--filename", definitions, "--timeout=60s")
	kubectl(t, "", "apply", "--filename", "cert-manager.yaml")
	kubectl(t, "", "--namespace", "cert-manager", "rollout", "status", "deployment/cert-manager", "--timeout=60s")
	install(t, "--create-namespace", "--set", "certificates.mode=cert-manager")
	kubectl(t, "", "--namespace", system, "wait", "--for=condition=Ready", "certificates.cert-manager.io", "--all", "--timeout=60s")
	doesTheMainJob(t, "cert-manager-mode", 8073)
}

func TestUninstalledItLeavesNothingBehindAndNamesTheNodeThatItCouldNotReach(t *testing.T) {
	s := newScene(t, "uninstalled")
	address := s.serves(8074)
	s.apply(webPod("far", "pinhole.dev/expose", "8075:8080", atNode(otherWorker)))
	s.ready("app=far")
	far := addressesOf(t, otherWorker).v4
	reaches(t, far, 8075, "hostname")
	putBackAtTheEnd(t)
	// With everything that can be switched on, so that there is the most to remove.
	pool := fmt.Sprintf("{apiVersion: pinhole.dev/v1alpha1, kind: NatPool, metadata: {name: uninstalled}, spec: {addresses: [%s], namespaces: {all: true}}}", address)
	kubectl(t, pool, "apply", "--filename=-")
	t.Cleanup(func() { kubectl(t, "", "delete", "natpools", "--all", "--timeout=30s") })
	install(t, "--set", "claims.enabled=true")
	s.apply(webPod("claimed", "pinhole.dev/expose", address+":8076:8080", atNode(worker)))
	eventually(t, 60*time.Second, "a port is claimed and the nodes have reported", func() error {
		found := kubectl(t, "", "get", ours, "--all-namespaces", "--output=name")
		if !strings.Contains(found, "portclaim") || !strings.Contains(found, "pinhole.pinhole.dev/claimed") || strings.Count(found, "natnode") != len(nodes) {
			return fmt.Errorf("there is %s", found)
		}
		return nil
	})
	ready := func() string {
		return kubectl(t, "", "get", "node", otherWorker, "--output", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	}
	t.Cleanup(func() { onNode(t, otherWorker, "systemctl start kubelet") })
	onNode(t, otherWorker, "systemctl stop kubelet")
	eventually(t, 120*time.Second, otherWorker+" is not ready", func() error {
		if now := ready(); now == "True" {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})

	output, err := command("", "helm", "uninstall", "pinhole", "--namespace", system, "--timeout", "300s")
	if err != nil {
		t.Fatalf("helm uninstall: %v\n%s", err, output)
	}
	byHand := regexp.MustCompile(`(?m)^ *(kubectl debug node/` + otherWorker + ` .*)$`).FindStringSubmatch(output)
	if byHand == nil || !strings.Contains(output, "NOT CLEANED: "+otherWorker) {
		t.Fatalf("the user reads\n%s\nwithout the node that is down and the command for it", output)
	}
	unreachable(t, address, 8074)
	for _, node := range []string{control, worker} {
		nothingInTheKernel(t, node)
	}
	// Nobody was there to take them: the connections to its pods go on.
	reaches(t, far, 8075, "hostname")

	onNode(t, otherWorker, "systemctl start kubelet")
	eventually(t, 120*time.Second, otherWorker+" is ready", func() error {
		if now := ready(); now != "True" {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
	// As whoever read it types it.
	t.Cleanup(func() { kubectl(t, "", "delete", "pods", "--all", "--namespace", "default", "--wait=false") })
	if said, err := command("", "sh", "-c", byHand[1]); err != nil {
		t.Errorf("%s: %v\n%s", byHand[1], err, said)
	}
	eventually(t, 60*time.Second, "its port is closed", func() error {
		if answer, err := fetchFromClient(far, 8075, "hostname"); err == nil {
			return fmt.Errorf("%s answers", answer)
		}
		return nil
	})
	nothingInTheKernel(t, otherWorker)
	eventually(t, 60*time.Second, "nothing is left in the cluster", func() error {
		if left := objectsLeft(t); len(left) != 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	// What somebody wrote stays, and goes when they say so.
	kubectl(t, "", "delete", "natpool", "uninstalled", "--timeout=30s")
}

func nothingInTheKernel(t *testing.T, node string) {
	t.Helper()
	if left := onNode(t, node, "{ iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save; nft list ruleset; } 2>/dev/null | grep PINHOLE || true"); left != "" {
		t.Errorf("in the kernel of %s is left\n%s", node, left)
	}
}

// What Pinhole writes of its own kinds.
const ours = "portclaims.pinhole.dev,natnodes.pinhole.dev,pinholes.pinhole.dev"

// objectsLeft names what is left of an installation, but for its custom resource definitions, to delete which would delete
// what users wrote, and the default pool, which users may have changed.
func objectsLeft(t *testing.T) (left []string) {
	t.Helper()
	kinds := func(namespaced string) string {
		return strings.Join(strings.Fields(kubectl(t, "", "api-resources", "--verbs=list", "--namespaced="+namespaced, "--output=name")), ",")
	}
	found := kubectl(t, "", "get", ours, "--all-namespaces", "--output=name") +
		kubectl(t, "", "get", kinds("true"), "--namespace", system, "--ignore-not-found", "--output=name") +
		kubectl(t, "", "get", kinds("false"), "--selector", "app.kubernetes.io/name=pinhole", "--ignore-not-found", "--output=name") +
		kubectl(t, "", "get", kinds("true"), "--all-namespaces", "--selector", "app.kubernetes.io/name=pinhole", "--ignore-not-found", "--output=name")
	for line := range strings.Lines(found) {
		name := strings.TrimSpace(line)
		// What every namespace has, and what tells of the past.
		if name == "configmap/kube-root-ca.crt" || name == "serviceaccount/default" || strings.HasPrefix(name, "event") ||
			strings.HasPrefix(name, "customresourcedefinition.") || strings.HasPrefix(name, "natpool.") || strings.HasPrefix(name, "Warning: ") {
			continue
		}
		left = append(left, name)
	}
	return left
}

func TestAnUpgradeAndARollbackLoseNoConnectionAndNoAdmissionCall(t *testing.T) {
	s := newScene(t, "upgrade")
	address := s.serves(8072)
	// The next release: another version of the chart and other images, which here hold the same programs.
	next := filepath.Join(t.TempDir(), "chart")
	if err := os.CopyFS(next, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	description := filepath.Join(next, "Chart.yaml")
	text, err := os.ReadFile(description)
	if err != nil {
		t.Fatal(err)
	}
	versions := regexp.MustCompile(`(?m)^(version|appVersion): (.*)$`)
	current := versions.FindSubmatch(text)
	if current == nil {
		t.Fatalf("no version in\n%s", text)
	}
	if err := os.WriteFile(description, versions.ReplaceAll(text, []byte("$1: 99.0.0")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		for _, part := range []string{"webhook", "agent"} {
			image := "ghcr.io/pinhole-dev/pinhole-" + part
			onNode(t, node, fmt.Sprintf("ctr --namespace k8s.io images tag --force %s:%s %s:99.0.0", image, current[2], image))
		}
	}
	t.Cleanup(func() { install(t) })

	admissions := keepAsking(t, s.namespace)
	s.keepsFlowing(address, 8072, func() {
		helm(t, "upgrade", "pinhole", next, "--wait", "--timeout", "180s")
		s.runsImages(":99.0.0")
		helm(t, "rollback", "pinhole", "--wait", "--timeout", "180s")
		s.runsImages(":" + string(current[2]))
	})
	made := admissions.finish()
	if made.answered == 0 || len(made.failures) != 0 {
		t.Errorf("%d admission calls were answered as they should, %d were not:\n%s", made.answered, len(made.failures), strings.Join(made.failures, "\n"))
	}
}

// runsImages waits until every pod of Pinhole runs an image with that tag, and the ones before have ended.
func (s scene) runsImages(tag string) {
	s.t.Helper()
	eventually(s.t, 120*time.Second, "all of Pinhole runs "+tag, func() error {
		if err := installed(); err != nil {
			return err
		}
		images := kubectl(s.t, "", "--namespace", system, "get", "pods", "--output", `jsonpath={range .items[*]}{.spec.containers[0].image}{"\n"}{end}`)
		for image := range strings.Lines(images) {
			if !strings.HasSuffix(strings.TrimSpace(image), tag) {
				return fmt.Errorf("a pod of %s is still there", strings.TrimSpace(image))
			}
		}
		return nil
	})
}

// keepAsking asks the API server without pause, and without kubectl, which would ask again: a pod that must be granted and
// get its defaults, then one that must be refused. Nothing is stored.
func keepAsking(t *testing.T, namespace string) *callers {
	t.Helper()
	proxy := exec.Command("kubectl", "proxy", "--port=0")
	output, err := proxy.StdoutPipe()
	if err == nil {
		err = proxy.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Kill()
		_ = proxy.Wait()
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("kubectl proxy: %v", err)
	}
	address := "http://" + strings.TrimSpace(strings.TrimPrefix(line, "Starting to serve on ")) +
		"/api/v1/namespaces/" + namespace + "/pods?dryRun=All"
	browser := &http.Client{Timeout: 15 * time.Second}
	ask := func(request string) (int, string, error) {
		pod := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"asked","annotations":{"pinhole.dev/expose":%q}},
			"spec":{"containers":[{"name":"web","image":"%s"}]}}`, request, agnhost)
		response, err := browser.Post(address, "application/json", strings.NewReader(pod))
		if err != nil {
			return 0, "", err
		}
		defer response.Body.Close()
		var body struct {
			Message  string
			Metadata struct{ Labels map[string]string }
		}
		err = json.NewDecoder(response.Body).Decode(&body)
		return response.StatusCode, body.Message + body.Metadata.Labels["pinhole.dev/enabled"], err
	}
	return keep(20*time.Millisecond, func() (string, error) {
		if code, said, err := ask("8079:8080"); err != nil || code != http.StatusCreated || said != "true" {
			return "", fmt.Errorf("a port that is free: %d %s %v", code, said, err)
		}
		code, said, err := ask("22")
		if err != nil || !strings.Contains(said, "is restricted in this cluster") {
			return "", fmt.Errorf("a restricted port: %d %s %v", code, said, err)
		}
		return "", nil
	})
}
