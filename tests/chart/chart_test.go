package chart

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

const chart = "../../chart"

// What no value sets, and why nobody misses it.
var unreachable = map[string]string{
	"help":                   "is no setting",
	"tls-self-signed":        "is for trying out: nothing in a cluster would trust it",
	"tls-self-signed-ca-out": "goes with it",
	"uninstall kubeconfig":   "is the cluster around the Job",
	"uninstall log-format":   "is text: whoever runs helm uninstall reads it",
	"uninstall claims-only":  "is for an upgrade that turns claims off, in a cluster where they were on",
}

// matrix are the values with which the chart must work.
var matrix = map[string][]string{
	"defaults":     {},
	"cert-manager": {"certificates.mode=cert-manager"},
	"other times": {
		"certificates.self.caLifetime=4380h", "certificates.self.caSoak=5m", "certificates.self.caRetireAfter=48h", "certificates.self.leafLifetime=24h",
	},
	"own issuer": {"certificates.mode=cert-manager", "certificates.certManager.issuerRef.name=corporate", "certificates.certManager.issuerRef.kind=ClusterIssuer"},
	"files":      {"certificates.mode=files"},
	"bundle":     {"certificates.mode=files", "certificates.files.caBundle=-----BEGIN CERTIFICATE-----"},
	"without agent": {
		"agent.enabled=false", "networkPolicy.enabled=false", "webhook.podDisruptionBudget.enabled=false", "webhook.replicas=1",
	},
	"host network": {"webhook.hostNetwork=true", "webhook.ports.https=18443", "webhook.ports.http=18484"},
	"monitoring": {
		"monitoring.podMonitor.enabled=true", "monitoring.prometheusRule.enabled=true", "monitoring.dashboard.enabled=true",
		"agent.metrics.mode=authenticated", "monitoring.podMonitor.labels.team=ops", "monitoring.prometheusRule.labels.team=ops",
	},
	"policy": {
		"policy.annotationKeys={example.org/nat,example.org/more}", "policy.statefulKinds={GameServerSet}", "policy.compat={ack}", "policy.restrictedPorts=22\\,9000-9100", "policy.protectedPorts=", "policy.nodePortRange=",
		"policy.allowedNamespaces={mail,games}", "policy.allowedNamespaceSelector=nat=yes", "policy.discloseHolder=false",
		"excludedNamespaces={kube-system,kube-node-lease}", "log.level=debug", "log.format=text",
	},
	"uninstall": {
		"uninstall.cleanNodes=true", "agent.enabled=false", "uninstall.nodeSelector.a=b", "uninstall.deadlineSeconds=30", "agent.flags.resource-prefix=NAT",
		"uninstall.resources.requests.cpu=1m",
	},
	"own objects": {
		"extraObjects[0].apiVersion=v1", "extraObjects[0].kind=ConfigMap", "extraObjects[0].metadata.name=\\{{ .Release.Name }}-more",
		"extraObjects[0].metadata.namespace=\\{{ .Release.Namespace }}", "agent.metrics.mode=off",
	},
	"no uninstall": {"uninstall.enabled=false"},
	"claims":       {"claims.enabled=true", "claims.gateways={gw-1,gw-2.example.com}"},
	"everything else": {
		"imagePullSecrets[0].name=registry", "commonLabels.team=net", "commonAnnotations.owner=net", "fullnameOverride=nat", "createNamespace=true",
		"image.tag=1.2.3", "image.pullPolicy=Always", "agent.image.digest=sha256:" + strings.Repeat("0", 64),
		"webhook.failurePolicy=Ignore", "webhook.podLabels.a=b", "webhook.podAnnotations.a=b", "webhook.nodeSelector.a=b", "webhook.extraArgs={--drain-period=20s}",
		"webhook.extraEnv[0].name=A", "webhook.extraEnv[0].value=b", "webhook.extraVolumes[0].name=v", "webhook.extraVolumes[0].emptyDir.sizeLimit=1Mi",
		"webhook.extraVolumeMounts[0].name=v", "webhook.extraVolumeMounts[0].mountPath=/v", "webhook.serviceAccount.annotations.a=b",
		"webhook.topologySpreadConstraints[0].maxSkew=1", "webhook.topologySpreadConstraints[0].topologyKey=zone",
		"webhook.topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule", "webhook.topologySpreadConstraints[0].labelSelector.matchLabels.a=b", "agent.nodeSelector.a=b", "agent.podLabels.a=b", "agent.podAnnotations.a=b",
		"agent.extraEnv[0].name=A", "agent.extraEnv[0].value=b", "agent.extraVolumes[0].name=v", "agent.extraVolumes[0].emptyDir.sizeLimit=1Mi",
		"agent.extraVolumeMounts[0].name=v", "agent.extraVolumeMounts[0].mountPath=/v", "agent.extraArgs={--resync=60s}", "agent.maxUnavailable=10%", "agent.clusterCIDRs={10.244.0.0/16,fd00:244::/48}",
		"agent.metrics.mode=open", "agent.metrics.address=0.0.0.0", "webhook.service.annotations.a=b", "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b",
	},
	"all flags": allFlags(),
}

// allFlags sets each flag that only a map of flags can set.
func allFlags() []string {
	var settings []string
	for part, flags := range schemaFlags() {
		for _, flag := range flags {
			value := map[string]string{
				"include-net": "{203.0.113.0/24,2001:db8::/32}", "exclude-net": "{10.0.0.0/8}", "pod-cidr": "{10.244.0.0/16}", "cluster-cidr": "{10.96.0.0/12}",
				"dry-run": "true", "firewall": "dry-run", "iptables-flavor": "nft", "resource-prefix": "NAT", "udp-handover": "cut", "return-path": "routed", "link-mark-mask": "0x30",
				"link": `{interface=eth1\,gateway=192.0.2.1\,table=101,interface=eth2}`, "kubeconfig": "/etc/kubeconfig",
				"masquerade": "true", "masquerade-exclude-interface": "{wg0,eth1}", "masquerade-override-existing": "true", "masquerade-pod-cidr": "{10.244.0.0/16}", "non-masquerade-cidr": "{172.16.0.0/12}",
				"brake-threshold": "30", "brake-minimum": "10", "max-body-bytes": "1048576", "max-inflight-body-bytes": "8388608", "max-connections": "100",
			}[flag]
			if value == "" {
				value = "20s"
			}
			settings = append(settings, fmt.Sprintf("%s.flags.%s=%s", part, flag, value))
		}
	}
	slices.Sort(settings)
	return settings
}

func helm(arguments ...string) (string, error) {
	binary := os.Getenv("PINHOLE_HELM")
	if binary == "" {
		return "", fmt.Errorf("PINHOLE_HELM does not name helm: run `make test-chart`")
	}
	command := exec.Command(binary, arguments...)
	output, err := command.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("helm %s: %w\n%s", strings.Join(arguments, " "), err, output)
	}
	return string(output), nil
}

// rendered keeps what was rendered: every test looks at the whole matrix, and Helm takes its time.
var rendered sync.Map

func render(t *testing.T, settings ...string) string {
	t.Helper()
	key := strings.Join(settings, "\n")
	if text, ok := rendered.Load(key); ok {
		return text.(string)
	}
	arguments := []string{"template", "pinhole", chart, "--namespace=pinhole-system"}
	for _, setting := range settings {
		arguments = append(arguments, "--set="+setting)
	}
	text, err := helm(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	rendered.Store(key, text)
	return text
}

type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name, Namespace string
		Labels          map[string]string
		Annotations     map[string]string
	}
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Args []string
					Env  []struct{ Name, Value string }
				}
			}
		}
	}
	Webhooks []struct {
		Name            string
		MatchConditions []struct{ Name, Expression string } `json:"matchConditions"`
	}
	whole map[string]any
	text  string
}

// objects reads every document of a rendered chart, strictly: a key given twice is an error.
func objects(t *testing.T, text string) []object {
	t.Helper()
	var found []object
	for _, document := range strings.Split(text, "\n---\n") {
		var whole map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &whole); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if whole == nil {
			continue
		}
		object := object{whole: whole, text: document}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		found = append(found, object)
	}
	return found
}

func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, object := range objects {
		if object.Kind == kind && object.Metadata.Name == name {
			return object
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return object{}
}

var long = regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--([a-z][a-z-]+)`)

// programFlags are the flags that the program's help lists for a part.
func programFlags(t *testing.T, part string) []string {
	t.Helper()
	help, err := exec.Command(os.Getenv("PINHOLE_BIN"), part, "--help").Output()
	if err != nil {
		t.Fatalf("PINHOLE_BIN=%s %s --help: %v", os.Getenv("PINHOLE_BIN"), part, err)
	}
	var flags []string
	for _, match := range long.FindAllStringSubmatch(string(help), -1) {
		flags = append(flags, match[1])
	}
	if len(flags) < 10 {
		t.Fatalf("the help of %s shows only %v", part, flags)
	}
	return flags
}

// schemaFlags are the flags that values.schema.json lets users set by name.
func schemaFlags() map[string][]string {
	text, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		panic(err)
	}
	type part struct {
		Properties struct {
			Flags struct{ Properties map[string]any }
		}
	}
	var schema struct {
		Properties struct{ Webhook, Agent part }
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		panic(err)
	}
	found := map[string][]string{}
	for name, part := range map[string]part{"webhook": schema.Properties.Webhook, "agent": schema.Properties.Agent} {
		for flag := range part.Properties.Flags.Properties {
			found[name] = append(found[name], flag)
		}
		slices.Sort(found[name])
	}
	return found
}

func TestTheChartPassesHelmsOwnStrictCheck(t *testing.T) {
	for name, settings := range matrix {
		arguments := []string{"lint", "--strict", "--quiet", chart}
		for _, setting := range settings {
			arguments = append(arguments, "--set="+setting)
		}
		if _, err := helm(arguments...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAValueThatDoesNotExistOrCannotBeIsRefused(t *testing.T) {
	for _, setting := range []string{
		"webhok.replicas=3", "webhook.replica=3", "webhook.replicas=0", "certificates.mode=vault", "certificates.self.caSoak=2 minutes",
		"agent.flags.drain-period=1s", "policy.annotationKeys={a b}", "policy.compat={smartnat}", "policy.statefulKinds={gameserversets}", "agent.metrics.address=everywhere", "webhook.failurePolicy=Maybe",
		"certificates.files.caBundle=ca.crt", "claims.gateways={Edge'}",
	} {
		if text, err := helm("template", "pinhole", chart, "--set="+setting); err == nil || !strings.Contains(text, "values don't meet the specifications") {
			t.Errorf("--set %s: %v", setting, err)
		}
	}
}

// The same flags in the program's help and in the chart: none misspelt, none forgotten.
func TestEveryFlagOfTheProgramIsReachableAndNoOtherIsUsed(t *testing.T) {
	for part, kind := range map[string]string{"webhook": "Deployment", "agent": "DaemonSet", "uninstall": "Job"} {
		used := map[string]bool{}
		for _, settings := range matrix {
			for _, object := range objects(t, render(t, settings...)) {
				if object.Kind != kind {
					continue
				}
				container := object.Spec.Template.Spec.Containers[0]
				if container.Args[0] != part {
					continue
				}
				for _, argument := range container.Args[1:] {
					flag, _, _ := strings.Cut(strings.TrimPrefix(argument, "--"), "=")
					used[flag] = true
				}
				for _, variable := range container.Env {
					if flag, ok := strings.CutPrefix(variable.Name, "PINHOLE_"); ok {
						used[strings.ReplaceAll(strings.ToLower(flag), "_", "-")] = true
					}
				}
			}
		}
		flags := programFlags(t, part)
		for flag := range used {
			if !slices.Contains(flags, flag) {
				t.Errorf("the chart uses --%s, which `pinhole %s` does not have", flag, part)
			}
		}
		for _, flag := range flags {
			if unreachable[flag] == "" && unreachable[part+" "+flag] == "" && !used[flag] {
				t.Errorf("no value of the chart sets --%s of `pinhole %s`", flag, part)
			}
		}
	}
}

// Whoever pipes a rendered chart into kubectl must not uninstall by that.
func TestPlainManifestsDoNotUninstall(t *testing.T) {
	for settings, want := range map[string]bool{"plainManifests=true": false, "plainManifests=true,uninstall.standalone=true": true} {
		found := objects(t, render(t, strings.Split(settings, ",")...))
		if got := slices.ContainsFunc(found, func(object object) bool { return object.Kind == "Job" }); got != want {
			t.Errorf("%s: is there a Job? %v", settings, got)
		}
	}
}

func TestOneListOfAnnotationKeysMakesFlagsAndConditions(t *testing.T) {
	found := objects(t, render(t, "policy.annotationKeys={example.org/nat,bln.space/podnat}", "policy.compat={ack}", "claims.enabled=true"))
	keys := []string{
		"bln.space/podnat", "k8s.aliyun.com/pod-dnat", "k8s.aliyun.com/pod-dnat-expose-port", "k8s.aliyun.com/pod-dnat-expose-protocol",
		"k8s.aliyun.com/pod-dnat-fixed", "example.org/nat",
	}
	seen := 0
	for _, object := range found {
		for _, webhook := range object.Webhooks {
			for _, condition := range webhook.MatchConditions {
				if condition.Name != "uses-nat" && condition.Name != "nat-annotations-changed" {
					continue
				}
				seen++
				for _, key := range keys {
					if strings.Count(condition.Expression, "'"+key+"'") != 1 {
						t.Errorf("%s, condition %s, does not name %s once:\n%s", webhook.Name, condition.Name, key, condition.Expression)
					}
				}
			}
		}
	}
	if seen != 6 {
		t.Errorf("there are %d conditions about annotations, expected 6", seen)
	}
	for _, workload := range []object{
		find(t, found, "Deployment", "pinhole-webhook"), find(t, found, "DaemonSet", "pinhole-agent"), find(t, found, "Deployment", "pinhole-controller"),
	} {
		arguments := workload.Spec.Template.Spec.Containers[0].Args
		for _, flag := range []string{"--annotation-key=example.org/nat", "--annotation-key=bln.space/podnat", "--compat=ack"} {
			if !slices.Contains(arguments, flag) {
				t.Errorf("%s does not get %s: %v", workload.Metadata.Name, flag, arguments)
			}
		}
	}
}

func TestWhatTheAgentServesIsOpenOnlyWhereItWasOpened(t *testing.T) {
	for settings, want := range map[string]struct{ plain, how, secure string }{
		"":                         {plain: "127.0.0.1:8484"},
		"agent.metrics.mode=local": {plain: "127.0.0.1:8484"},
		"agent.metrics.mode=off":   {plain: "127.0.0.1:8484", how: "off"},
		"agent.metrics.mode=open":  {plain: "$(HOST_IP):8484"},
		"agent.metrics.mode=open,agent.metrics.address=[::]":           {plain: "[::]:8484"},
		"agent.metrics.mode=authenticated":                             {"127.0.0.1:8484", "authenticated", "$(HOST_IP):8486"},
		"agent.metrics.mode=authenticated,agent.metrics.address=[::1]": {"127.0.0.1:8484", "authenticated", "[::1]:8486"},
	} {
		found := objects(t, render(t, append(strings.Split(settings, ","), "monitoring.podMonitor.enabled=true")...))
		variables := map[string]string{}
		for _, variable := range find(t, found, "DaemonSet", "pinhole-agent").Spec.Template.Spec.Containers[0].Env {
			variables[variable.Name] = variable.Value
		}
		if variables["PINHOLE_HTTP_ADDRESS"] != want.plain || variables["PINHOLE_METRICS"] != want.how ||
			variables["PINHOLE_METRICS_ADDRESS"] != want.secure || variables["PINHOLE_ENTRIES_ADDRESS"] != "127.0.0.1:8485" {
			t.Errorf("%s: %v", settings, variables)
		}
		asks := strings.Contains(find(t, found, "ClusterRole", "pinhole-agent").text, "tokenreviews")
		if asks != (want.how == "authenticated") {
			t.Errorf("%s: may the agent ask whose a token is? %v", settings, asks)
		}
		// A PodMonitor for what it cannot reach would only raise alarms.
		isScraped := slices.ContainsFunc(found, func(object object) bool {
			return object.Kind == "PodMonitor" && object.Metadata.Name == "pinhole-agent"
		})
		if isReachable := want.how == "authenticated" || strings.Contains(settings, "open"); isScraped != isReachable {
			t.Errorf("%s: is there a PodMonitor for the agents? %v", settings, isScraped)
		}
	}
}

// What the alerts and the dashboard ask for must be what the program tells.
func TestAlertsAndDashboardAskForMetricsThatExist(t *testing.T) {
	name := regexp.MustCompile(`\bpinhole_[a-z_]+\b`)
	told := map[string]bool{}
	sources, err := filepath.Glob("../../src/telemetry/metrics/*.rs")
	if err != nil || len(sources) == 0 {
		t.Fatalf("the metrics' sources are not there: %v", err)
	}
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		// The lists in the tests there are whole names, held against what the program prints.
		_, contract, _ := strings.Cut(string(text), "mod tests")
		for _, metric := range name.FindAllString(contract, -1) {
			told[metric] = true
		}
	}
	for _, file := range []string{"rules.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join(chart, "files", file))
		if err != nil {
			t.Fatal(err)
		}
		asked := name.FindAllString(string(text), -1)
		if len(asked) < 10 {
			t.Errorf("%s asks only for %v", file, asked)
		}
		for _, metric := range asked {
			if !told[metric] {
				t.Errorf("%s asks for %s, which no part tells", file, metric)
			}
		}
	}
}

func TestTheRenderedManifestsAreThoseOfTheChart(t *testing.T) {
	directory := t.TempDir()
	if output, err := exec.Command(chart+"/render-manifests", os.Getenv("PINHOLE_HELM"), directory).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	const kept = "../../webhook-config"
	fresh, shipped := tree(t, directory), tree(t, kept)
	for name, text := range fresh {
		if shipped[name] != text {
			t.Errorf("%s/%s is not what the chart renders: run `make manifests`", kept, name)
		}
	}
	for name := range shipped {
		if _, ok := fresh[name]; !ok {
			t.Errorf("%s/%s is not rendered from the chart: remove it, or render it in chart/render-manifests", kept, name)
		}
	}
	if len(fresh) < 3 {
		t.Errorf("chart/render-manifests made only %v", slices.Collect(maps.Keys(fresh)))
	}
}

// tree reads every file below a directory, by its path there.
func tree(t *testing.T, directory string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(directory, path)
		files[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func plain(t *testing.T, value any) string {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
