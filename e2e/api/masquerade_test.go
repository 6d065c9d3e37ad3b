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
func TestAnAgentMasqueradesByTheOldestPolicyThatSelectsItsNode(t *testing.T) {
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
	says("a", object{"podCIDRs": []string{"10.244.7.0/24"}, "nonMasqueradeCIDRs": []string{"172.16.0.0/12"}, "overrideExisting": true})
	says("elsewhere", object{"nodeSelector": object{"matchLabels": notes{"zone": "b"}}, "podCIDRs": []string{"10.244.8.0/24"}})
	agent := c.startAgentOf(object{"metadata": object{"name": "node-1", "labels": notes{"zone": "a"}}}, "--firewall=nftables")
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

	// Were both of one second, the name would decide in the same way.
	says("b", object{"podCIDRs": []string{"10.244.9.0/24"}})
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
	c.must(http.MethodDelete, policies+"/a", nil, nil)
	holds("s_masqueraded", "10.244.9.0/24")
	holds("s_kept", "")
	c.must(http.MethodDelete, policies+"/b", nil, nil)
	holds("s_masqueraded", "")
	c.must(http.MethodDelete, policies+"/elsewhere", nil, nil)
}
