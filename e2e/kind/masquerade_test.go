package kind

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const masqueradePolicy = `apiVersion: pinhole.dev/v1alpha1
kind: MasqueradePolicy
metadata: {name: e2e}
spec:
  nonMasqueradeCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
  overrideExisting: true
`

// Flannel spares what pods send each other; a broad rule made by hand does not.
func TestAMasqueradePolicyShowsPodsToEachOtherAndOnlyTheNodeToTheOutside(t *testing.T) {
	s := newScene(t, "masquerade")
	// Not within the node, where the kubelet and the runtime talk to each other.
	byHand := "POSTROUTING ! -o lo -m comment --comment e2e-by-hand -j MASQUERADE"
	for _, node := range []string{worker, otherWorker} {
		for _, program := range []string{"iptables", "ip6tables"} {
			t.Cleanup(func() { onNode(t, node, program+" -w -t nat -D "+byHand) })
			onNode(t, node, program+" -w -t nat -I "+byHand)
		}
	}
	s.apply(webPod("one", "example.com/note", "none", atNode(worker)))
	s.apply(webPod("two", "example.com/note", "none", atNode(otherWorker)))
	s.ready("app in (one, two)")
	one, two := s.onlyPod("app=one").Status.PodIPs, s.onlyPod("app=two").Status.PodIPs
	node, outside := addressesOf(t, worker).served(), addressesOf(t, client).served()
	if len(one) != len(node) || len(two) != len(node) {
		t.Fatalf("the pods have %v and %v, the node %v", one, two, node)
	}
	for i := range node {
		if seen := s.sees("one", "web", two[i].IP, 8080); seen == one[i].IP {
			t.Errorf("before, %s is seen as itself: the rule made by hand does nothing", seen)
		}
		if seen := s.sees("one", "web", outside[i], clientPort); seen != node[i] {
			t.Errorf("before, the client outside saw %s, the node is %s", seen, node[i])
		}
	}
	others := rulesOfOthers(t, worker)
	if !strings.Contains(others, "FLANNEL-POSTRTG") || !strings.Contains(others, "e2e-by-hand") {
		t.Errorf("neither flannel nor a hand has rules here:\n%s", others)
	}

	t.Cleanup(func() { kubectl(t, "", "delete", "masqueradepolicy", "e2e", "--ignore-not-found") })
	s.apply(masqueradePolicy)
	for i := range node {
		eventually(t, 20*time.Second, "pods see each other", func() error {
			if seen := s.sees("one", "web", two[i].IP, 8080); seen != one[i].IP {
				return fmt.Errorf("two saw %s, one is %s", seen, one[i].IP)
			}
			if seen := s.sees("two", "web", one[i].IP, 8080); seen != two[i].IP {
				return fmt.Errorf("one saw %s, two is %s", seen, two[i].IP)
			}
			return nil
		})
		if seen := s.sees("one", "web", outside[i], clientPort); seen != node[i] {
			t.Errorf("after, the client outside saw %s, the node is %s", seen, node[i])
		}
	}
	if now := rulesOfOthers(t, worker); now != others {
		t.Errorf("rules of others have changed from\n%s\nto\n%s", others, now)
	}
}

// rulesOfOthers are those that masquerade on a node, apart from Pinhole's.
func rulesOfOthers(t *testing.T, node string) string {
	t.Helper()
	return onNode(t, node, "for program in iptables ip6tables; do $program -w -t nat -S; done | "+
		"grep -E -- '-A (POSTROUTING|FLANNEL-POSTRTG) ' | grep -v PINHOLE")
}
