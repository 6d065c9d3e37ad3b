package api

import (
	"fmt"
	"strings"
	"testing"
)

// One line per way to get a request wrong. The golden file holds what kubectl prints for each.
var wrongRequests = []struct {
	name        string
	annotations notes
	spec        string
}{
	{name: "not JSON", annotations: nat(`entries: [{srcPort: 25, dstPort: 25}]`)},
	{name: "not an object", annotations: nat(`[{"srcPort":25,"dstPort":25}]`)},
	{name: "an empty value", annotations: nat(``)},
	{name: "no entries", annotations: nat(`{"entries":[]}`)},
	{name: "a misspelt key", annotations: nat(`{"entries":[{"srcport":25,"dstPort":25}]}`)},
	{name: "a misspelt key at the top", annotations: nat(`{"entrys":[{"srcPort":25,"dstPort":25}]}`)},
	{name: "a key given twice", annotations: nat(`{"entries":[{"srcPort":25,"srcPort":26,"dstPort":25}]}`)},
	{name: "a missing port", annotations: nat(`{"entries":[{"srcPort":25}]}`)},
	{name: "port 0", annotations: nat(`{"entries":[{"srcPort":0,"dstPort":25}]}`)},
	{name: "a port beyond 65535", annotations: nat(`{"entries":[{"srcPort":70000,"dstPort":25}]}`)},
	{name: "a port as a string", annotations: nat(`{"entries":[{"srcPort":"25","dstPort":25}]}`)},
	{name: "an unknown protocol", annotations: nat(`{"entries":[{"srcPort":25,"dstPort":25,"proto":"tpc"}]}`)},
	{name: "no address and ifaceAuto false", annotations: nat(`{"entries":[{"ifaceAuto":false,"srcPort":25,"dstPort":25}]}`)},
	{name: "an address and ifaceAuto true", annotations: nat(`{"entries":[{"ifaceAuto":true,"srcIP":"203.0.113.7","srcPort":25,"dstPort":25}]}`)},
	{name: "a host name for an address", annotations: nat(`{"entries":[{"srcIP":"mail.example.com","srcPort":25,"dstPort":25}]}`)},
	{name: "a loopback address", annotations: nat(`{"entries":[{"srcIP":"127.0.0.1","srcPort":25,"dstPort":25}]}`)},
	{name: "a multicast address", annotations: nat(`{"entries":[{"srcIP":"224.0.0.1","srcPort":25,"dstPort":25}]}`)},
	{name: "a link-local address", annotations: nat(`{"entries":[{"srcIP":"fe80::1","srcPort":25,"dstPort":25}]}`)},
	{name: "the unspecified address", annotations: nat(`{"entries":[{"srcIP":"0.0.0.0","srcPort":25,"dstPort":25}]}`)},
	{name: "an IPv4-mapped IPv6 address", annotations: nat(`{"entries":[{"srcIP":"::ffff:203.0.113.7","srcPort":25,"dstPort":25}]}`)},
	{name: "a range that overflows at the pod", annotations: nat(`{"entries":[{"srcPort":7000,"srcPortEnd":7100,"dstPort":65500}]}`)},
	{name: "a range that ends before it starts", annotations: nat(`{"entries":[{"srcPort":7010,"srcPortEnd":7000,"dstPort":7000}]}`)},
	{name: "the same entry twice", annotations: nat(`{"entries":[{"srcPort":25,"dstPort":25},{"srcPort":25,"dstPort":25}]}`)},
	{name: "overlapping ranges", annotations: expose("7000-7010,7005-7020")},
	{name: "allowed sources that are no CIDR", annotations: nat(`{"entries":[{"srcPort":25,"dstPort":25,"allowedSources":["10.0.0.0/33"]}]}`)},
	{name: "allowed sources with bits beyond the prefix", annotations: nat(`{"entries":[{"srcPort":25,"dstPort":25,"allowedSources":["10.0.0.1/8"]}]}`)},
	{name: "both forms at once", annotations: notes{
		"pinhole.dev/nat": `{"entries":[{"srcPort":25,"dstPort":25}]}`, "pinhole.dev/expose": "25"}},
	{name: "a short form that is not one", annotations: expose("http")},
	{name: "an empty short form", annotations: expose("")},
	{name: "an unknown protocol in the short form", annotations: expose("53/dns")},
	{name: "ranges of different lengths", annotations: expose("7000-7010:8000-8005")},
	{name: "a host network", annotations: expose("8080"), spec: "hostNetwork: true"},
	{name: "a restricted port", annotations: expose("22")},
	{name: "a restricted port within a range", annotations: expose("20-30")},
	{name: "a protected port", annotations: expose("10250")},
	{name: "a protected UDP port", annotations: expose("8472/udp")},
	{name: "many mistakes at once", annotations: nat(
		`{"entries":[{"srcPort":25,"dstPort":25,"proto":"icmp"},{"srcPort":22,"dstPort":22},{"srcIP":"nowhere","srcPort":99999,"dstPort":0}]}`)},
}

func TestEveryRefusalOfAPodSaysWhatToChange(t *testing.T) {
	d := newDesk(t, "refusals")
	var transcript strings.Builder
	for _, wrong := range wrongRequests {
		said := d.refused(pod("web", wrong.annotations, wrong.spec))
		fmt.Fprintf(&transcript, "# %s\n", wrong.name)
		for _, key := range []string{"pinhole.dev/nat", "pinhole.dev/expose"} {
			if value, present := wrong.annotations[key]; present {
				fmt.Fprintf(&transcript, "#   %s: %s\n", key, value)
			}
		}
		fmt.Fprintf(&transcript, "%s\n", said)
	}
	if stored := d.pods(); len(stored) != 0 {
		t.Errorf("refused pods were stored: %v", stored)
	}
	d.golden("refusals.txt", transcript.String())
}

func TestTheTemplateOfEachWorkloadKindIsRefusedAtApply(t *testing.T) {
	d := newDesk(t, "templates")
	var transcript strings.Builder
	for _, kind := range kinds {
		said := d.refused(workload(kind, "web", nat(`{"entries":[{"srcPort":22,"dstPort":22},{"srcPort":25,"dstport":25}]}`)))
		fmt.Fprintf(&transcript, "# %s\n%s\n", kind, said)
	}
	d.golden("templates.txt", transcript.String())
}

func TestATemplateOfEachWorkloadKindWithAFreePortIsAccepted(t *testing.T) {
	d := newDesk(t, "good-templates")
	for index, kind := range kinds {
		annotations := expose(fmt.Sprintf("192.0.2.10:%d:80", 8000+index))
		d.accepted(workload(kind, strings.ToLower(kind), annotations))
		said := d.refused(workload(kind, "second-"+strings.ToLower(kind), annotations))
		d.mentions(said, kind, "good-templates/"+strings.ToLower(kind))
	}
}

func TestAPortHeldByAnotherIsRefusedAndTheHolderNamed(t *testing.T) {
	d := newDesk(t, "mail")
	other := d.another("spam")
	var transcript strings.Builder
	holder := func(title, manifest string) {
		d.accepted(manifest)
		fmt.Fprintf(&transcript, "# %s\n", title)
	}
	refused := func(title, said string) { fmt.Fprintf(&transcript, "# %s\n%s\n", title, said) }

	holder("mail/smtp holds 192.0.2.20:25/tcp and 192.0.2.20:7000-7010/udp on node-1",
		pod("smtp", expose("192.0.2.20:25,192.0.2.20:7000-7010/udp"), "nodeName: node-1"))
	refused("a pod of the same namespace", d.refused(pod("relay", expose("192.0.2.20:25"))))
	refused("a pod of another namespace", other.refused(pod("relay", expose("192.0.2.20:25"))))
	refused("a Deployment", other.refused(workload("Deployment", "relay", expose("192.0.2.20:25"))))
	refused("a range around it", other.refused(pod("relay", expose("192.0.2.20:20-30"))))
	refused("a part of its range", other.refused(pod("relay", expose("192.0.2.20:7005/udp"))))

	d.accepted(workload("Deployment", "imap", expose("192.0.2.20:143"), "replicas: 0"))
	refused("a port of mail/imap, a Deployment scaled to 0", other.refused(pod("relay", expose("192.0.2.20:143"))))
	d.golden("conflicts.txt", transcript.String())

	other.accepted(pod("udp", expose("192.0.2.20:25/udp")))
	other.accepted(pod("address", expose("192.0.2.21:25")))
	other.accepted(pod("beside", expose("192.0.2.20:7011/udp")))
}

func TestTheSecondOfTwoDeploymentsInOneFileThatWantOnePortIsRefused(t *testing.T) {
	d := newDesk(t, "one-file")
	// Without pods, so that the refusal names none.
	deployment := func(name string) string {
		return workload("Deployment", name, expose("192.0.2.30:443:8443"), "replicas: 0")
	}
	result := d.kubectl(deployment("first")+"---\n"+deployment("second"), "apply", "-f", "-")
	if result.Succeeded {
		t.Errorf("both were accepted:\n%s", result.Stdout)
	}
	d.golden("two-deployments.txt", result.Stdout+result.Stderr)
	d.succeeds("", "get", "deployment", "first")
	d.fails("", "get", "deployment", "second")
}

func TestEveryWayToWriteAPodIsChecked(t *testing.T) {
	d := newDesk(t, "ways")
	bad := pod("web", expose("22"))
	d.accepted(pod("plain", nil))
	for name, said := range map[string]string{
		"create":            d.fails(bad, "create", "-f", "-"),
		"server-side apply": d.fails(bad, "apply", "--server-side", "-f", "-"),
		"dry run":           d.fails(bad, "apply", "--dry-run=server", "-f", "-"),
		"annotate":          d.fails("", "annotate", "pod", "plain", "pinhole.dev/expose=22"),
		"patch":             d.fails("", "patch", "pod", "plain", "-p", `{"metadata":{"annotations":{"pinhole.dev/expose":"22"}}}`),
		"replace":           d.fails(pod("plain", expose("22")), "replace", "-f", "-"),
		"status": d.fails("", "patch", "pod", "plain", "--subresource=status", "--type=merge",
			"-p", `{"metadata":{"annotations":{"pinhole.dev/expose":"22"}}}`),
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(said, "metadata.annotations[pinhole.dev/expose]") || !strings.Contains(said, "22") {
				t.Errorf("the refusal does not name annotation and port:\n%s", said)
			}
		})
	}
	if changed := d.pod("plain").Metadata.Annotations["pinhole.dev/expose"]; changed != "" {
		t.Errorf("a refused change was stored: %q", changed)
	}
}
