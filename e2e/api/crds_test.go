package api

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

var definitions = []string{"portclaims", "natpools", "pinholes", "natnodes", "masqueradepolicies"}

// claim is the manifest of a PortClaim to what the spec says.
func claim(name string, spec string) string {
	return fmt.Sprintf(`apiVersion: pinhole.dev/v1alpha1
kind: PortClaim
metadata: {name: %s}
spec:
  %s
  holder: {kind: Deployment, namespace: mail, name: postfix}
  state: Reserved
  since: "2026-01-02T03:04:05Z"
  renewed: "2026-01-02T03:04:05Z"
`, name, spec)
}

func pool(name, spec string) string {
	return fmt.Sprintf("apiVersion: pinhole.dev/v1alpha1\nkind: NatPool\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

func pinhole(name, spec string) string {
	return fmt.Sprintf("apiVersion: pinhole.dev/v1alpha1\nkind: Pinhole\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

// manyPorts is the list of that many ports of a Pinhole, in its longest form.
func manyPorts(count int) string {
	var ports strings.Builder
	for number := range count {
		fmt.Fprintf(&ports, "{name: %s-%d, address: '2001:0db8:0000:0000:0000:0000:0000:0001', port: %d, targetPort: 80},", strings.Repeat("n", 50), number, 7000+number)
	}
	return "ports: [" + ports.String() + "]"
}

// One line per way to get an object wrong that the API server notices by itself. The golden file holds what kubectl prints.
var wrongObjects = []struct{ name, manifest string }{
	{"a claim whose name is of another port", claim("v4-192-0-2-1-tcp-81", "address: 192.0.2.1\n  protocol: TCP\n  port: 80")},
	{"a claim whose name is of another address", claim("v4-192-0-2-2-tcp-80", "address: 192.0.2.1\n  protocol: TCP\n  port: 80")},
	{"a claim whose IPv6 name is too short", claim("v6-20010db8-tcp-80", "address: '2001:db8::1'\n  protocol: TCP\n  port: 80")},
	{"a claim with a port and no protocol", claim("v4-192-0-2-1", "address: 192.0.2.1\n  port: 80")},
	{"a claim to a block that is not aligned", claim("v4-192-0-2-1-udp-7000-7015", "address: 192.0.2.1\n  protocol: UDP\n  port: 7000\n  portEnd: 7015")},
	{"a claim to no address", claim("v4-256-0-2-1-tcp-80", "address: 256.0.2.1\n  protocol: TCP\n  port: 80")},
	{"a claim in an unknown state", strings.Replace(claim("v4-192-0-2-1-tcp-80", "address: 192.0.2.1\n  protocol: TCP\n  port: 80"), "Reserved", "Forgotten", 1)},
	{"a pool without addresses", pool("wrong", "ports: [{first: 1024, last: 2048}]")},
	{"a pool with something else for an address", pool("wrong", "addresses: [203.0.113.7, mail.example.com]")},
	{"a pool with a range that runs backwards", pool("wrong", "addresses: [203.0.113.7], ports: [{first: 2048, last: 1024}]")},
	{"a pool with a static band beyond its range", pool("wrong", "addresses: [203.0.113.7], ports: [{first: 1024, last: 1030, staticBand: 8}]")},
	{"a pool with a port beyond 65535", pool("wrong", "addresses: [203.0.113.7], ports: [{first: 1024, last: 70000}]")},
	{"a pool with an unknown operator", pool("wrong", "addresses: [203.0.113.7], namespaces: {selector: {matchExpressions: [{key: team, operator: Like, values: [a]}]}}")},
	{"a pool with an operator and no value", pool("wrong", "addresses: [203.0.113.7], namespaces: {selector: {matchExpressions: [{key: team, operator: In}]}}")},
	{"a pool with one link twice", pool("wrong", "addresses: [203.0.113.7], links: [{interface: eth1}, {interface: eth1}]")},
	{"a pinhole to nothing", pinhole("wrong", "target: {}, ports: [{port: 443}]")},
	{"a pinhole to two things", pinhole("wrong", "target: {service: web, pod: web-0}, ports: [{port: 443}]")},
	{"a pinhole without ports", pinhole("wrong", "target: {service: web}, ports: []")},
	{"a pinhole with too many ports", pinhole("wrong", "target: {service: web}, "+manyPorts(65))},
	{"a pinhole with something else for an address", pinhole("wrong", "target: {service: web}, addresses: [203.0.113], ports: [{port: 443}]")},
	{"a pinhole with a source that is no network", pinhole("wrong", "target: {service: web}, allowedSources: [10.0.0.1], ports: [{port: 443}]")},
	{"a pinhole with a port beyond 65535", pinhole("wrong", "target: {service: web}, ports: [{port: 65536}]")},
	{"a pinhole with an unknown protocol", pinhole("wrong", "target: {service: web}, ports: [{port: 443, protocol: tcp}]")},
	{"a pinhole with a range that runs backwards", pinhole("wrong", "target: {service: web}, ports: [{port: 7010, portEnd: 7000}]")},
	{"a pinhole with a range to a named port", pinhole("wrong", "target: {service: web}, ports: [{port: 7000, portEnd: 7010, targetPort: rtp}]")},
	{"a pinhole with overlapping ports", pinhole("wrong", "target: {service: web}, ports: [{port: 7000, portEnd: 7010}, {port: 7005}]")},
	{"a pinhole with two ports of one name", pinhole("wrong", "target: {service: web}, ports: [{name: a, port: 80}, {name: a, port: 81}]")},
	{"a pinhole with a port to be found and no target port", pinhole("wrong", "target: {service: web}, ports: [{protocol: UDP}]")},
	{"a pinhole with a target port beyond 65535", pinhole("wrong", "target: {service: web}, ports: [{port: 80, targetPort: 70000}]")},
	{"a pinhole with a port to be found on two addresses", pinhole("wrong", "target: {service: web}, addresses: [203.0.113.7, 203.0.113.8], ports: [{targetPort: 80}]")},
	{"a pinhole with a field of another version", pinhole("wrong", "target: {service: web, via: ClusterIP}, ports: [{port: 80}], retention: {policy: Retain}")},
	{"a pool with a time to live and another policy", pool("wrong", "addresses: [203.0.113.7], retention: {policy: Retain, ttlSeconds: 60}")},
	{"a masquerade policy with something else for a network", masqueradePolicy("wrong", "podCIDRs: [10.244.0.0]")},
	{"a masquerade policy that exempts everything", masqueradePolicy("wrong", "nonMasqueradeCIDRs: [0.0.0.0/0]")},
	{"a masquerade policy with a wildcard for an interface", masqueradePolicy("wrong", "excludedInterfaces: [wg+]")},
}

func TestTheAPIServerRefusesWrongObjectsByItself(t *testing.T) {
	d := newDesk(t, "wrong-objects")
	var transcript strings.Builder
	for _, wrong := range wrongObjects {
		fmt.Fprintf(&transcript, "# %s\n%s\n", wrong.name, d.refused(wrong.manifest))
	}
	d.golden("crd-refusals.txt", transcript.String())
}

func TestAPinholeTakesAsManyPortsAsWasPromised(t *testing.T) {
	d := newDesk(t, "many-ports")
	d.accepted(pinhole("of-a-user", "target: {service: web}, "+manyPorts(64)))
	d.accepted(pinhole("of-a-pod", "target: {pod: web}, "+manyPorts(256)))
}

func TestTheDefinitionsAreEstablishedAndExplained(t *testing.T) {
	d := newDesk(t, "definitions")
	for _, plural := range definitions {
		d.succeeds("", "wait", "--for=condition=Established", "--timeout=30s", "crd/"+plural+".pinhole.dev")
		said := d.succeeds("", "get", "crd/"+plural+".pinhole.dev", "-o",
			`jsonpath={range .status.conditions[?(@.status=="True")]}{.type} {end}`).Stdout
		if strings.Contains(said, "NonStructuralSchema") {
			t.Errorf("%s has no structural schema", plural)
		}
	}
	var transcript strings.Builder
	for _, path := range []string{"portclaims.spec", "natpools.spec", "natpools.spec.namespaces", "pinholes.spec",
		"pinholes.spec.target", "pinholes.spec.ports", "natnodes.spec", "natnodes.status", "masqueradepolicies.spec", "masqueradepolicies.status"} {
		fmt.Fprintf(&transcript, "# kubectl explain %s\n%s\n", path, d.succeeds("", "explain", path).Stdout)
	}
	d.golden("crd-explain.txt", transcript.String())
}

func TestApplyingTheDefinitionsWarnsOfNothing(t *testing.T) {
	d := newDesk(t, "no-warnings")
	said := d.succeeds("", "apply", "--dry-run=server", "-f", "../../chart/files/crds")
	if strings.Contains(said.Stderr, "Warning") {
		t.Error(said.Stderr)
	}
}

func TestDefaultsAreFilledInAndCanBeRead(t *testing.T) {
	d := newDesk(t, "crd-defaults")
	var transcript strings.Builder
	for _, object := range []struct{ resource, manifest string }{
		{"natpool/defaults", pool("defaults", "addresses: [203.0.113.7]")},
		{"pinhole/defaults", pinhole("defaults", "target: {service: web}, ports: [{port: 443, targetPort: https}, {targetPort: 53, protocol: UDP}]")},
	} {
		d.accepted(object.manifest)
		spec := d.succeeds("", "get", object.resource, "-o", "jsonpath={.spec}").Stdout
		fmt.Fprintf(&transcript, "# %s\n%s\n\n", object.resource, spec)
	}
	d.golden("crd-defaults.txt", transcript.String())
}

func TestWhatAClaimIsForNeverChanges(t *testing.T) {
	d := newDesk(t, "claim-identity")
	d.accepted(claim("v4-192-0-2-7-tcp-80", "address: 192.0.2.7\n  protocol: TCP\n  port: 80"))
	d.accepted(claim("v6-20010db8000000000000000000000001-udp-7008-7023", "address: '2001:db8::1'\n  protocol: UDP\n  port: 7008\n  portEnd: 7023"))
	d.accepted(claim("v4-192-0-2-8", "address: 192.0.2.8"))
	d.succeeds("", "patch", "portclaim", "v4-192-0-2-7-tcp-80", "--type=merge", "-p", `{"spec":{"state":"Bound","podUID":"1"}}`)
	said := d.fails("", "patch", "portclaim", "v4-192-0-2-7-tcp-80", "--type=merge", "-p", `{"spec":{"port":81}}`)
	d.mentions(said, "what a claim is for cannot change")
	said = d.fails("", "patch", "portclaim", "v4-192-0-2-8", "--type=merge", "-p", `{"spec":{"protocol":"TCP","port":80}}`)
	d.mentions(said, "what a claim is for cannot change")
	selected := d.succeeds("", "get", "portclaims", "--field-selector=spec.address=192.0.2.7", "-o", "name").Stdout
	if selected != "portclaim.pinhole.dev/v4-192-0-2-7-tcp-80\n" {
		t.Errorf("selected by address: %q", selected)
	}
}

var ages = regexp.MustCompile(`(?m) +[0-9]+[smh]([0-9]+[smh])?$`)

func TestKubectlGetShowsWhatIsGoingOn(t *testing.T) {
	d := newDesk(t, "crd-columns")
	d.accepted(pinhole("web", "target: {service: web}, addresses: [203.0.113.9], ports: [{port: 443}]"))
	d.accepted(pool("columns", "addresses: [203.0.113.9]"))
	d.accepted(claim("v4-203-0-113-9-tcp-443", "address: 203.0.113.9\n  protocol: TCP\n  port: 443\n  pool: columns"))
	d.accepted("apiVersion: pinhole.dev/v1alpha1\nkind: NatNode\nmetadata: {name: columns}\nspec: {}\n")
	d.accepted(masqueradePolicy("columns", "nodeSelector: {}, podCIDRs: [10.244.0.0/16], nonMasqueradeCIDRs: [172.16.0.0/12], overrideExisting: true"))
	condition := func(name, status, reason string) string {
		return fmt.Sprintf(`{"type":%q,"status":%q,"reason":%q,"message":"","lastTransitionTime":"2026-01-02T03:04:05Z"}`, name, status, reason)
	}
	for resource, status := range map[string]string{
		"pinhole/web": `{"external":"203.0.113.9:443/tcp","target":"Service web:443","node":"node-1","holder":"Pinhole web","conditions":[` +
			condition("Accepted", "True", "Granted") + "," + condition("Programmed", "False", "NoEndpoints") + `]}`,
		"natpool/columns": `{"usage":{"addresses":1,"capacity":193536,"used":1,"free":193535,"reserved":0,"cooling":0,"outOfRange":0},"conditions":[` +
			condition("Ready", "True", "Granting") + `]}`,
		"natnode/columns": `{"address":"203.0.113.9,2001:db8::9","backend":"iptables-nft","agentVersion":"0.1.0","programmed":{"entries":12},"conditions":[` +
			condition("Ready", "True", "InSync") + `]}`,
		"masqueradepolicy/columns": `{"nodes":3,"programmed":2,"conditions":[` +
			condition("Accepted", "True", "Accepted") + "," + condition("Programmed", "False", "NotProgrammed") + `]}`,
	} {
		d.succeeds("", "patch", resource, "--subresource=status", "--type=merge", "-p", `{"status":`+status+`}`)
	}
	var transcript strings.Builder
	for _, arguments := range [][]string{
		{"get", "ph", "-A", "--field-selector=metadata.namespace=crd-columns"},
		{"get", "np", "columns"},
		{"get", "nn", "columns"},
		{"get", "nn", "columns", "-o", "wide"},
		{"get", "pcl", "v4-203-0-113-9-tcp-443"},
		{"get", "mqp", "columns"},
		{"get", "mqp", "columns", "-o", "wide"},
	} {
		said := d.succeeds("", arguments...).Stdout
		fmt.Fprintf(&transcript, "# kubectl %s\n%s\n", strings.Join(arguments, " "), ages.ReplaceAllString(said, "   AGE"))
	}
	d.succeeds("", "wait", "--for=condition=Accepted", "--timeout=5s", "pinhole/web")
	d.golden("crd-columns.txt", transcript.String())
}
