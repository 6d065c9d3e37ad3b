package kind

import "testing"

// The agents are told nothing of the cluster: the Nodes show them which pods there are.
func TestAMappedPodIsSeenAsItselfByAPodOfAnotherNodeAndWithItsExternalAddressOutside(t *testing.T) {
	s := newScene(t, "cluster")
	s.apply(webPod("mapped", "pinhole.dev/expose", "8043:8080", atNode(worker)))
	s.apply(webPod("far", "example.com/note", "none", atNode(otherWorker)))
	s.ready("app in (mapped, far)")
	mapped, far := s.onlyPod("app=mapped").Status.PodIPs, s.onlyPod("app=far").Status.PodIPs
	node, outside := addressesOf(t, worker).served(), addressesOf(t, client).served()
	if len(mapped) != len(node) || len(far) != len(node) {
		t.Fatalf("the pods have %v and %v, the node %v", mapped, far, node)
	}
	for i := range node {
		reaches(t, node[i], 8043, "clientip")
		if seen := s.sees("mapped", "web", far[i].IP, 8080); seen != mapped[i].IP {
			t.Errorf("the pod on the other node saw %s, the mapped pod is %s", seen, mapped[i].IP)
		}
		if seen := s.sees("mapped", "web", outside[i], clientPort); seen != node[i] {
			t.Errorf("the client outside saw %s, the node is %s", seen, node[i])
		}
	}
}
