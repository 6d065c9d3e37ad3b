package kind

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestWithClaimsAPortIsHandedToAnotherDeploymentWithoutALostConnection(t *testing.T) {
	installPlugin(t)
	address := addressesOf(t, worker).v4
	s, _ := withClaims(t, "handed", address)
	web := func(name string) string {
		return webDeployment(name, "pinhole.dev/expose", address+":8130:8080", 1, atNode(worker))
	}
	s.apply(web("blue"))
	s.ready("app=blue")
	blue := s.onlyPod("app=blue").Metadata.Name
	s.programmed(blue)
	const command = "transfer deployment/blue --to deployment/green"
	if said := s.refused(web("green")); !strings.Contains(said, "kubectl pinhole "+command) {
		t.Errorf("whoever comes second reads\n%s\nwithout the way out", said)
	}

	calls := keepCalling(address, 8130)
	if said, code := plugin(t, append(strings.Fields(command), "--namespace", s.namespace)...); code != 0 {
		t.Fatalf("it ends with %d:\n%s", code, said)
	}
	s.apply(web("green"))
	s.ready("app=green")
	green := s.onlyPod("app=green").Metadata.Name
	s.programmed(green)
	s.kubectl("delete", "deployment", "blue")
	eventually(t, 60*time.Second, "the old one is gone", func() error {
		if left := s.pods("app=blue"); len(left) != 0 {
			return fmt.Errorf("%d pods", len(left))
		}
		return nil
	})
	made := calls.finish()
	if len(made.failures) != 0 || strings.Join(made.answers, " ") != blue+" "+green {
		t.Errorf("%d connections failed (%v); answers came from %v, expected %s and then %s", len(made.failures), made.failures, made.answers, blue, green)
	}
	if holder := kubectl(t, "", "get", claimOf(address, 8130), "--output", "jsonpath={.spec.holder.name}"); holder != "green" {
		t.Errorf("the claim is held by %q", holder)
	}
}

func TestWithClaimsThePodOfAStatefulSetIsToldAndServedByTheSamePortAgain(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, pool := withClaims(t, "fixed", address)
	set := workloads[0].manifest(0, atNode(worker))
	set = strings.Replace(set, `{pinhole.dev/expose: "0:8080"}`, fmt.Sprintf(`{pinhole.dev/pool: %s, pinhole.dev/expose: "fixed:8080"}`, pool), 1)
	s.apply(withEndpointsInItsEnvironment(set))
	s.ready("app=statefulset")
	at, port := s.told("statefulset-0")
	if answer := reaches(t, at, port, "hostname"); answer != "statefulset-0" {
		t.Errorf("it was told %s:%d, where %s answers", at, port, answer)
	}
	first := s.onlyPod("app=statefulset").Metadata.UID

	s.kubectl("delete", "pod", "statefulset-0", "--grace-period=1")
	// Who comes while it is away gets another one.
	s.apply(fromPool("between", pool, atNode(worker)))
	eventually(t, 60*time.Second, "its pod is made again", func() error {
		if found := s.pods("app=statefulset"); len(found) != 1 || found[0].Metadata.UID == first {
			return fmt.Errorf("there are %d", len(found))
		}
		return nil
	})
	s.ready("app=statefulset")
	s.programmed("statefulset-0")
	if again, samePort := s.told("statefulset-0"); again != at || samePort != port {
		t.Errorf("it had %s:%d, and was told %s:%d", at, port, again, samePort)
	}
	if answer := reaches(t, at, port, "hostname"); answer != "statefulset-0" {
		t.Errorf("%s answers", answer)
	}
	s.ready("app=between")
	if _, other := s.told("between"); other == port {
		t.Errorf("another pod was told %d as well", other)
	}
}

func TestWithClaimsAPodThatAsksInTheWordsOfACKIsReached(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, pool := withClaims(t, "dnat", address)
	t.Cleanup(func() { install(t) })
	install(t, "--set", "policy.compat={ack}")
	eventually(t, 120*time.Second, "all parts read ACK's words", installed)

	pod := withEndpointsInItsEnvironment(webPod("game", "k8s.aliyun.com/pod-dnat", "true", atNode(worker)))
	pod = strings.Replace(pod, "annotations: {", "annotations: {pinhole.dev/pool: "+pool+`, k8s.aliyun.com/pod-dnat-expose-port: "8080", `, 1)
	s.apply(pod)
	s.ready("app=game")
	at, port := s.told("game")
	if answer := reaches(t, at, port, "hostname"); at != address || answer != "game" {
		t.Errorf("it was told %s:%d, where %s answers", at, port, answer)
	}
	wrong := strings.Replace(strings.Replace(pod, "name: game", "name: wrong", 1), `expose-port: "8080"`, `expose-port: "80-90"`, 1)
	if said := s.refused(wrong); !strings.Contains(said, "k8s.aliyun.com/pod-dnat-expose-port") {
		t.Errorf("a list that means nothing is refused with\n%s", said)
	}
	s.kubectl("delete", "pod", "game", "--grace-period=1")
	unreachable(t, address, port)
}

func TestWithClaimsTurnedOffPodsThatWaitAreLetGoAndNothingKeepsTheirNamespace(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, pool := withClaims(t, "turned-off", address)
	kubectl(t, `{"spec":{"ports":[{"first":8136,"last":8136}]}}`, "patch", "natpool", pool, "--type=merge", "--patch-file=/dev/stdin")
	s.apply(fromPool("served", pool, atNode(worker)))
	s.ready("app=served")
	s.programmed("served")
	s.apply(fromPool("waiting", pool, atNode(worker)))
	eventually(t, 30*time.Second, "the second pod has a Pinhole", func() error {
		if output, err := tryKubectl("", "--namespace", s.namespace, "get", "ph", "waiting"); err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
		return nil
	})
	if waiting := s.onlyPod("app=waiting"); waiting.Spec.NodeName != "" {
		t.Fatalf("without a port it was scheduled to %s", waiting.Spec.NodeName)
	}

	turnClaimsOff(t)
	s.ready("app=waiting")
	s.kubectl("delete", "namespace", s.namespace, "--timeout=60s")
}

// Nothing is removed before the controller has decided about what runs.
func TestWithClaimsTurnedOnWhatRunsIsAdoptedWithoutALostConnection(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, _ := withClaims(t, "adopted", address)
	turnClaimsOff(t)
	// As in a cluster that has never had any.
	kubectl(t, "", "delete", "pinholes.pinhole.dev,portclaims,natnodes", "--all", "--all-namespaces", "--timeout=60s")
	s.apply(webPod("web", "pinhole.dev/expose", address+":8137:8080,8138:8080", atNode(worker)))
	s.ready("app=web")
	ports := []int{8137, 8138}
	for _, port := range ports {
		reaches(t, address, port, "hostname")
	}

	ofTheNode := keepCalling(address, ports[1])
	s.keepsFlowing(address, ports[0], func() {
		install(t)
		eventually(t, 180*time.Second, "what ran is claimed", func() error {
			for _, port := range ports {
				if err := s.claimedAndProgrammed(address, port); err != nil {
					return err
				}
			}
			return installed()
		})
		// Long enough for every agent to have looked again.
		time.Sleep(15 * time.Second)
	})
	if made := ofTheNode.finish(); made.answered == 0 || len(made.failures) != 0 {
		t.Errorf("on the node's own address %d connections were answered, %d failed: %s", made.answered, len(made.failures), strings.Join(made.failures, "\n"))
	}
	if said := newScene(t, "adopted-other").refused(webPod("web", "pinhole.dev/expose", address+":8137:8080")); !strings.Contains(said, "by Pod adopted/web") {
		t.Errorf("somebody else reads\n%s", said)
	}
}

// turnClaimsOff lets nothing decide about claims until the end of a scenario.
func turnClaimsOff(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { install(t) })
	helm(t, "upgrade", "pinhole", chart, "--wait", "--timeout", "180s", "--reset-then-reuse-values", "--set", "claims.enabled=false")
}

// claimOf names the claim of a TCP port of an IPv4 address.
func claimOf(address string, port int) string {
	return fmt.Sprintf("portclaim/v4-%s-tcp-%d", strings.ReplaceAll(address, ".", "-"), port)
}

// claimedAndProgrammed tells what is missing until the port of the pod `web` is claimed and its Pinhole programmed.
func (s scene) claimedAndProgrammed(address string, port int) error {
	for _, each := range [][2]string{{claimOf(address, port), "jsonpath={.spec.state}=Bound"}, {"ph/web", "condition=Programmed"}} {
		if output, err := tryKubectl("", "--namespace", s.namespace, "wait", each[0], "--for="+each[1], "--timeout=5s"); err != nil {
			return fmt.Errorf("%w: %s", err, output)
		}
	}
	return nil
}

// Somebody deletes the definitions, and with them every claim and every report, finalizers or not; then an upgrade puts them back.
func TestWithClaimsWhatFlowsGoesOnWhileTheDefinitionsVanishAndComeBack(t *testing.T) {
	address := addressesOf(t, worker).v4
	s, pool := withClaims(t, "vanished", address)
	s.apply(webPod("web", "pinhole.dev/expose", address+":8134:8080", atNode(worker)))
	s.ready("app=web")
	s.programmed("web")
	// Helm alone does not get over a definition that is gone, while something in the release is of its kind.
	putBack := func() {
		kubectl(t, "", "apply", "--server-side", "--filename", chart+"/files/crds")
		install(t)
	}
	t.Cleanup(putBack)

	s.keepsFlowing(address, 8134, func() {
		vanishing := []string{"crd/portclaims.pinhole.dev", "crd/natnodes.pinhole.dev", "crd/natpools.pinhole.dev", "crd/pinholes.pinhole.dev"}
		kubectl(t, "", append([]string{"delete", "--wait=false"}, vanishing...)...)
		eventually(t, 60*time.Second, "the definitions are gone", func() error {
			for _, kind := range []string{"pinholes", "natpools"} {
				letGo(kind)
			}
			output, err := tryKubectl("", append([]string{"get", "--ignore-not-found", "--output=name"}, vanishing...)...)
			if err != nil || output != "" {
				return fmt.Errorf("%w: %s", err, output)
			}
			return nil
		})
		// Long enough for every watch to have noticed.
		time.Sleep(15 * time.Second)
		putBack()
		kubectl(t, fmt.Sprintf(openPool, pool, address), "apply", "--filename=-")
		eventually(t, 180*time.Second, "the port is claimed and reported again", func() error {
			return s.claimedAndProgrammed(address, 8134)
		})
	})
}

// letGo takes the finalizers off whatever there is of a kind, as somebody does who is tired of waiting.
func letGo(kind string) {
	found, _ := tryKubectl("", "get", kind+".pinhole.dev", "--all-namespaces", "--output",
		`jsonpath={range .items[*]}{.metadata.namespace}{" "}{.metadata.name}{"\n"}{end}`)
	for line := range strings.Lines(found) {
		// Of a kind without namespaces, only the name is there.
		words := strings.Fields(line)
		arguments := []string{"patch", kind + ".pinhole.dev", words[len(words)-1], "--type=merge", "--patch", `{"metadata":{"finalizers":null}}`}
		if len(words) == 2 {
			arguments = append(arguments, "--namespace", words[0])
		}
		_, _ = tryKubectl("", arguments...)
	}
}
