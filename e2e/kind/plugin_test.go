package kind

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// installPlugin puts the program where kubectl looks for its plugins, as docs/kubectl-plugin.md tells users to.
func installPlugin(t *testing.T) {
	t.Helper()
	program := os.Getenv("PINHOLE_BIN")
	if program == "" {
		program = "../../target/debug/pinhole"
	}
	program, err := filepath.Abs(program)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		t.Fatalf("no program to be the plugin: %v; build it with `cargo build`, or name it in PINHOLE_BIN", err)
	}
	plugins := t.TempDir()
	if err := os.Symlink(program, filepath.Join(plugins, "kubectl-pinhole")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", plugins+":"+os.Getenv("PATH"))
}

// plugin runs `kubectl pinhole` and returns what it printed and its exit code.
func plugin(t *testing.T, arguments ...string) (string, int) {
	t.Helper()
	output, err := command("", "kubectl", append([]string{"pinhole"}, arguments...)...)
	if exit, ok := err.(*exec.ExitError); ok {
		return output, exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("kubectl pinhole %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return output, 0
}

func mentions(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not in:\n%s", word, text)
		}
	}
}

func TestThePluginListsExplainsAndTriesWhatTheKernelHas(t *testing.T) {
	installPlugin(t)
	s := newScene(t, "plugin")
	s.apply(webDeployment("web", "pinhole.dev/expose", "8060:8080,8060:8081/udp", 1, atNode(worker)))
	s.ready("app=web")
	node := addressesOf(t, worker)
	pod := s.onlyPod("app=web")
	reaches(t, node.v4, 8060, "clientip")

	var listed struct {
		Items []struct {
			External, Target, Node, State string
			Packets                       *int
		}
	}
	eventually(t, 20*time.Second, "the table has what the kernel holds", func() error {
		output, code := plugin(t, "list", "--namespace", s.namespace, "-o", "json")
		if code != 0 {
			return fmt.Errorf("list ends with %d: %s", code, output)
		}
		if err := json.Unmarshal([]byte(output), &listed); err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		for _, item := range listed.Items {
			if item.External == hostPort(node.v4, 8060)+"/tcp" && item.State == "Programmed" && item.Node == worker &&
				strings.HasSuffix(item.Target, ":8080") && item.Packets != nil && *item.Packets > 0 {
				return nil
			}
		}
		return fmt.Errorf("%s", output)
	})
	table, _ := plugin(t, "list", "--namespace", s.namespace)
	mentions(t, table, "EXTERNAL", "PACKETS", "Deployment plugin/web", "Programmed")

	explained, code := plugin(t, "explain", "--namespace", s.namespace, "deployment/web")
	if code != 0 {
		t.Errorf("explain ends with %d", code)
	}
	mentions(t, explained, "granted by the rules of admission", "Programmed", "for      pod plugin/"+pod.Metadata.Name)
	explained, _ = plugin(t, "explain", hostPort(node.v4, 8060))
	mentions(t, explained, "an address of "+worker, "holder     Deployment plugin/web, by pod "+pod.Metadata.Name)

	tried, code := plugin(t, "test", "--namespace", s.namespace, "deployment/web")
	if code != 0 {
		t.Errorf("test ends with %d:\n%s", code, tried)
	}
	// Another node is outside the pod network, and the pod must see that node's own address.
	mentions(t, tried, hostPort(node.v4, 8060)+"/tcp", ": reached", "from node ")
	for _, other := range []string{otherWorker, "pinhole-control-plane"} {
		if strings.Contains(tried, "from node "+other+": a server answers") {
			address := addressesOf(t, other).v4
			mentions(t, tried, fmt.Sprintf("the client is %s, the pod saw %s", address, address))
		}
	}
}

func TestThePluginSaysThatAClosedPortWasNotReached(t *testing.T) {
	installPlugin(t)
	s := newScene(t, "plugin-closed")
	s.apply(webPod("web", "pinhole.dev/expose", "8061:9", atNode(worker)))
	s.ready("app=web")
	eventually(t, 20*time.Second, "it is tried and refused", func() error {
		tried, code := plugin(t, "test", "--namespace", s.namespace, "pod/web")
		if code != 1 || !strings.Contains(tried, "NOT REACHED") || !strings.Contains(tried, "nobody listens there") {
			return fmt.Errorf("it ends with %d:\n%s", code, tried)
		}
		return nil
	})
}

func TestDoctorFindsNothingWrongWithAFreshInstall(t *testing.T) {
	installPlugin(t)
	// kubeadm asks for it. Here the first pod of a node that is no part of the node itself switches it on, and the control
	// plane may have none. What was in the way is looked for when an agent starts.
	controlPlane := "pinhole-control-plane"
	onNode(t, controlPlane, "echo 1 >/proc/sys/net/ipv4/ip_forward")
	kubectl(t, "", "--namespace", system, "delete", "pod", "--selector", "app.kubernetes.io/component=agent",
		"--field-selector", "spec.nodeName="+controlPlane)
	var found string
	eventually(t, time.Minute, "doctor is content", func() error {
		var code int
		if found, code = plugin(t, "doctor", "--namespace", "default"); code != 0 {
			return fmt.Errorf("it ends with %d:\n%s", code, found)
		}
		return nil
	})
	mentions(t, found, `asks for "22" is refused by the webhook`, "written to pinhole.dev/effective", "is trusted by the caBundle, until",
		"an agent is ready on 3 nodes", "nothing is in the way of programmed ports on 3 nodes", "No problem found")

	ground, code := plugin(t, "doctor", "--preflight")
	if code != 0 {
		t.Errorf("preflight ends with %d", code)
	}
	mentions(t, ground, "flannel: packets to pods pass netfilter", "kube-proxy in ", "every node: iptables v1.", "requests that name no address are served on")
}
