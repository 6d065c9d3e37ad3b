package api

import (
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/pinhole-dev/pinhole/e2e/api/lab"
)

func masqueradePolicy(name, spec string) string {
	return fmt.Sprintf("apiVersion: pinhole.dev/v1alpha1\nkind: MasqueradePolicy\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

// One after the other with the other tests of agents, whose node is the same.
func TestAnAgentMasqueradesByTheOldestPolicyThatSelectsItsNodeAndEachSaysHowItStands(t *testing.T) {
	c := newClerk(t, "masquerade")
	const policies = "/apis/pinhole.dev/v1alpha1/masqueradepolicies"
	if err := lab.AddNodeAddress("203.0.113.34"); err != nil {
		t.Fatal(err)
	}
	says := func(name string, spec object) {
		t.Helper()
		c.must(http.MethodPost, policies, object{
			"apiVersion": "pinhole.dev/v1alpha1", "kind": "MasqueradePolicy", "metadata": object{"name": name}, "spec": spec,
		}, nil)
	}
	here := object{"matchLabels": notes{"zone": "a"}}
	says("a", object{"nodeSelector": here, "podCIDRs": []string{"10.244.7.0/24"}, "nonMasqueradeCIDRs": []string{"172.16.0.0/12"}, "overrideExisting": true})
	says("elsewhere", object{"nodeSelector": object{"matchLabels": notes{"zone": "b"}}, "podCIDRs": []string{"10.244.8.0/24"}})
	agent := c.startAgentOf(object{"metadata": object{"name": "node-1", "labels": notes{"zone": "a"}}}, "--firewall=nftables", "--nat-node")
	t.Cleanup(func() { c.must(http.MethodDelete, "/apis/pinhole.dev/v1alpha1/natnodes/node-1", nil, nil) })
	// stands waits for NODES, PROGRAMMED and REASON, and for the message to have a part.
	stands := func(name, wanted, mentioned string) {
		t.Helper()
		err := lab.Poll(patience, func() error {
			const columns = `{.metadata.generation} {.status.observedGeneration} {.status.nodes} {.status.programmed} ` +
				`{.status.conditions[?(@.type=="Programmed")].reason}: {.status.conditions[?(@.type=="Programmed")].message}`
			said, _ := c.kubectl("", "get", "mqp", name, "-o", "jsonpath="+columns)
			generation, told, _ := strings.Cut(said, " ")
			if !strings.HasPrefix(told, generation+" "+wanted+":") || !strings.Contains(told, mentioned) {
				return fmt.Errorf("%s should be %q of the last generation and say %q, and is %s", name, wanted, mentioned, said)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	holds := func(set, wanted string) {
		t.Helper()
		err := lab.Poll(patience, func() error {
			listed, err := exec.Command("nft", "list", "set", "ip", "PINHOLE", set).CombinedOutput()
			switch text := string(listed); {
			case err != nil:
				return fmt.Errorf("%w: %s", err, text)
			case wanted == "" && strings.Contains(text, "elements"), !strings.Contains(text, wanted):
				return fmt.Errorf("%s should hold %q, and is %s", set, wanted, text)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	holds("s_masqueraded", "10.244.7.0/24")
	holds("s_kept", "172.16.0.0/12")
	stands("a", "1 1 Programmed", "")
	stands("elsewhere", "0 0 NoNodes", "spec.nodeSelector")

	// Were both of one second, the name would decide in the same way.
	says("b", object{"nodeSelector": here, "podCIDRs": []string{"10.244.9.0/24"}})
	err := lab.Poll(patience, func() error {
		if said := agent.LogTail(); !strings.Contains(said, "More than one MasqueradePolicy") {
			return fmt.Errorf("the agent does not tell of the second policy:\n%s", said)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	holds("s_masqueraded", "10.244.7.0/24")
	stands("b", "1 0 Overlapped", "a on node-1")

	changes := func(name string, spec object) {
		t.Helper()
		c.must(http.MethodPatch, policies+"/"+name, object{"spec": spec}, nil)
	}
	changes("a", object{"podCIDRs": []string{"10.244.6.0/24"}})
	stands("a", "1 1 Programmed", "")
	holds("s_masqueraded", "10.244.6.0/24")
	changes("a", object{"excludedInterfaces": []string{".."}})
	stands("a", "1 0 Unreadable", `spec.excludedInterfaces: ".."`)
	holds("s_masqueraded", "10.244.6.0/24")

	c.must(http.MethodDelete, policies+"/a", nil, nil)
	holds("s_masqueraded", "10.244.9.0/24")
	holds("s_kept", "")
	stands("b", "1 1 Programmed", "")
	c.must(http.MethodDelete, policies+"/b", nil, nil)
	holds("s_masqueraded", "")
	c.must(http.MethodDelete, policies+"/elsewhere", nil, nil)
}
