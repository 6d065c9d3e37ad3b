package api

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
)

const (
	effective = "pinhole.dev/effective"
	enabled   = "pinhole.dev/enabled"
)

func TestAPodGetsItsDefaultsAndTheLabel(t *testing.T) {
	d := newDesk(t, "defaults")
	var transcript strings.Builder
	for _, each := range []struct {
		name        string
		annotations notes
	}{
		{"json", nat(`{"entries":[{"srcPort":25,"dstPort":2525},{"srcIP":"192.0.2.40","srcPort":5353,"dstPort":53,"proto":"UDP"}]}`)},
		{"range", nat(`{"entries":[{"srcIP":"2001:DB8:0::40","srcPort":7000,"srcPortEnd":7010,"dstPort":7000,"allowedSources":["2001:DB8:1::/48"]}]}`)},
		{"short", expose("80, 8080:81,5300:53/udp,7100-7110,[2001:db8::40]:443:8443,192.0.2.40:132/SCTP")},
	} {
		d.accepted(pod(each.name, each.annotations))
		stored := d.pod(each.name)
		for key, value := range each.annotations {
			if stored.Metadata.Annotations[key] != value {
				t.Errorf("what the user wrote became %q", stored.Metadata.Annotations[key])
			}
			fmt.Fprintf(&transcript, "# %s: %s\n", key, value)
		}
		fmt.Fprintf(&transcript, "%s: %s\n%s: %q\n\n",
			effective, stored.Metadata.Annotations[effective], enabled, stored.Metadata.Labels[enabled])
	}
	d.golden("defaults.txt", transcript.String())
}

func TestAPodWithoutAnnotationsIsLeftAlone(t *testing.T) {
	d := newDesk(t, "plain")
	d.accepted(pod("plain", nil))
	stored := d.pod("plain")
	if _, present := stored.Metadata.Annotations[effective]; present || stored.Metadata.Labels[enabled] != "" {
		t.Errorf("it got %v and %v", stored.Metadata.Annotations, stored.Metadata.Labels)
	}
}

func TestWhatAUserWritesIntoOutputKeysIsOverwritten(t *testing.T) {
	d := newDesk(t, "outputs")
	lie := `{"entries":[{"srcPort":22,"dstPort":22}]}`
	d.accepted(pod("honest", expose("192.0.2.41:25")))
	d.accepted(pod("liar", notes{"pinhole.dev/expose": "192.0.2.41:26:25", effective: lie}))
	want := strings.Replace(d.pod("honest").Metadata.Annotations[effective], `"srcPort":25`, `"srcPort":26`, 1)
	if got := d.pod("liar").Metadata.Annotations[effective]; got != want || got == "" {
		t.Errorf("%s is\n%s, expected\n%s", effective, got, want)
	}

	d.succeeds("", "annotate", "--overwrite", "pod", "liar", effective+"="+lie)
	if got := d.pod("liar").Metadata.Annotations[effective]; got != want {
		t.Errorf("after an update, %s is\n%s, expected\n%s", effective, got, want)
	}
	d.succeeds("", "label", "--overwrite", "pod", "liar", enabled+"=no")
	if got := d.pod("liar").Metadata.Labels[enabled]; got != "true" {
		t.Errorf("after an update, the label is %q", got)
	}
}

func TestAPodThatAsksToBeSpreadGetsLabelsAndAnAntiAffinityThatTheAPIServerTakes(t *testing.T) {
	d := newDesk(t, "spread")
	d.accepted(pod("web", notes{"pinhole.dev/expose": "8000:80,5353/udp", "pinhole.dev/spread": "true"}))
	labels := d.pod("web").Metadata.Labels
	holder := labels["pinhole.dev/port-tcp-8000"]
	if holder == "" || labels["pinhole.dev/port-udp-5353"] != holder {
		t.Errorf("the labels are %v", labels)
	}
	terms := d.succeeds("", "get", "pod", "web", "--output",
		"jsonpath={range .spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*]}{.labelSelector.matchExpressions[0].key} {end}").Stdout
	if terms != "pinhole.dev/port-tcp-8000 pinhole.dev/port-udp-5353 " {
		t.Errorf("it is kept off nodes by %q", terms)
	}

	d.succeeds("", "label", "--overwrite", "pod", "web", "pinhole.dev/port-tcp-8000=no", "pinhole.dev/port-tcp-9=no")
	now := d.pod("web").Metadata.Labels
	if _, present := now["pinhole.dev/port-tcp-9"]; present || now["pinhole.dev/port-tcp-8000"] != holder {
		t.Errorf("after an update the labels are %v", now)
	}
	d.mentions(d.refused(pod("wrong", notes{"pinhole.dev/expose": "8001:80", "pinhole.dev/spread": "yes"})),
		`metadata.annotations[pinhole.dev/spread]: yes: is neither "true" nor "false"`)
}

func TestWhenAPortPassesToAPodIsOneOfThreeWordsAndChangesLikeARequest(t *testing.T) {
	d := newDesk(t, "handover")
	const wrong = "pinhole.dev/handover]: whengone: is none of WhenReady, WhenGone, Immediate; did you mean WhenGone?"
	d.mentions(d.refused(workload("Deployment", "web", notes{"pinhole.dev/expose": "8001:80", "pinhole.dev/handover": "whengone"})), wrong)
	d.mentions(d.refused(workload("Deployment", "web", notes{"pinhole.dev/expose": "8001:80", "pinhole.dev/udp-handover": "cut"})),
		"pinhole.dev/udp-handover]: cut: is none of Drain, Cut; did you mean Cut?")
	d.accepted(workload("Deployment", "web", notes{"pinhole.dev/expose": "8001:80", "pinhole.dev/handover": "WhenGone", "pinhole.dev/udp-handover": "Cut"}, "replicas: 0"))
	// Or its pods would be refused, and nobody would see it.
	said := d.fails("", "patch", "deployment", "web", "-p", `{"spec":{"template":{"metadata":{"annotations":{"pinhole.dev/handover":"whengone"}}}}}`)
	d.mentions(said, wrong)
	d.succeeds("", "patch", "deployment", "web", "-p", `{"spec":{"template":{"metadata":{"annotations":{"pinhole.dev/handover":null}}}}}`)
}

func TestAPodIsSuspendedByOneOfTwoWordsAndThatIsNoNewRequest(t *testing.T) {
	d := newDesk(t, "suspended")
	const key, wrong = "pinhole.dev/suspended", "pinhole.dev/suspended]: yes: is none of true, false"
	d.mentions(d.refused(pod("web", notes{"pinhole.dev/expose": "192.0.2.113:80", key: "yes"})), wrong)
	d.mentions(d.refused(workload("Deployment", "web", notes{"pinhole.dev/expose": "8001:80", key: "yes"})), wrong)
	d.accepted(workload("Deployment", "web", notes{"pinhole.dev/expose": "8001:80", key: "true"}, "replicas: 0"))
	d.mentions(d.fails("", "patch", "deployment", "web", "-p", `{"spec":{"template":{"metadata":{"annotations":{"`+key+`":"yes"}}}}}`), wrong)
	d.accepted(pod("web", expose("192.0.2.113:80")))
	d.succeeds("", "annotate", "pod", "web", key+"=true")
	d.mentions(d.fails("", "annotate", "pod", "web", "--overwrite", key+"=yes"), wrong)
	d.mentions(d.refused(pod("other", expose("192.0.2.113:80"))), "is held by Pod suspended/web")
	d.succeeds("", "annotate", "pod", "web", key+"-")
}

func TestATemplateOfSeveralPodsForAnExclusivePortIsRefusedHoweverItGrows(t *testing.T) {
	d := newDesk(t, "exclusive")
	asks := func(address, word string) notes {
		return notes{"pinhole.dev/expose": address + ":80", "pinhole.dev/sharing": word}
	}
	const several = "keeps 192.0.2.102:80/tcp to one pod, and 2 replicas are asked for"
	d.mentions(d.refused(workload("Deployment", "web", asks("192.0.2.102", "Exclusive"), "replicas: 2")), several)
	d.accepted(workload("Deployment", "web", asks("192.0.2.102", "Exclusive"), "replicas: 1"))
	d.mentions(d.fails("", "patch", "deployment", "web", "-p", `{"spec":{"replicas":2}}`), several)
	d.succeeds("", "patch", "deployment", "web", "-p", `{"spec":{"replicas":0}}`)
	// Nobody is asked about the subresource; what comes of it stands by, and going back always works.
	d.succeeds("", "scale", "deployment/web", "--replicas=3")
	d.succeeds("", "patch", "deployment", "web", "-p", `{"spec":{"replicas":2}}`)
	job := workload("Job", "once", asks("192.0.2.103", "Exclusive"), "parallelism: 1")
	d.accepted(job)
	d.mentions(d.fails("", "patch", "job", "once", "-p", `{"spec":{"parallelism":2}}`), "and parallelism is 2")
	meant := d.accepted(workload("Deployment", "db", asks("192.0.2.104", "ActiveStandby"), "replicas: 2"))
	if said := meant.Stdout + meant.Stderr; strings.Contains(said, "one pod at a time") {
		t.Errorf("what is meant was warned of: %s", said)
	}
}

func TestOutputKeysWithoutARequestAreDropped(t *testing.T) {
	d := newDesk(t, "leftovers")
	manifest := pod("copied", notes{effective: `{"entries":[]}`, "example.com/team": "mail"})
	d.accepted(strings.Replace(manifest, "metadata:\n", "metadata:\n  labels: {pinhole.dev/enabled: \"true\", app: copied}\n", 1))
	stored := d.pod("copied").Metadata
	if _, present := stored.Annotations[effective]; present || stored.Labels[enabled] != "" {
		t.Errorf("they are still there: %v and %v", stored.Annotations, stored.Labels)
	}
	if stored.Annotations["example.com/team"] != "mail" || stored.Labels["app"] != "copied" {
		t.Errorf("others' keys are gone: %v and %v", stored.Annotations, stored.Labels)
	}
}

func TestTheRequestOfARunningPodCanBeAddedChangedAndRemoved(t *testing.T) {
	d := newDesk(t, "edits")
	d.accepted(pod("web", nil))
	d.succeeds("", "annotate", "pod", "web", "pinhole.dev/expose=192.0.2.42:80")
	first := d.pod("web").Metadata
	d.mentions(first.Annotations[effective], `"srcPort":80`)
	if first.Labels[enabled] != "true" {
		t.Errorf("the label is %q", first.Labels[enabled])
	}
	d.succeeds("", "annotate", "--overwrite", "pod", "web", "pinhole.dev/expose=192.0.2.42:81:80")
	d.mentions(d.pod("web").Metadata.Annotations[effective], `"srcPort":81`)

	d.accepted(pod("next", expose("192.0.2.42:80")))
	d.succeeds("", "annotate", "pod", "web", "pinhole.dev/expose-")
	last := d.pod("web").Metadata
	if _, present := last.Annotations[effective]; present || last.Labels[enabled] != "" {
		t.Errorf("the output keys outlived the request: %v and %v", last.Annotations, last.Labels)
	}
	d.accepted(pod("last", expose("192.0.2.42:81")))
}

// audited are the audit log's annotations for the last request of one verb on one pod.
func (d desk) audited(verb, name string) map[string]string {
	d.t.Helper()
	var annotations map[string]string
	d.eventually(func() error {
		events, err := d.cluster.Audit()
		if err != nil {
			return err
		}
		for _, event := range events {
			reference := event.ObjectRef
			if event.Verb == verb && reference.Namespace == d.namespace && reference.Resource == "pods" && reference.Name == name {
				annotations = event.Annotations
			}
		}
		if annotations == nil {
			return fmt.Errorf("the audit log has no %s of pod %s", verb, name)
		}
		return nil
	})
	return annotations
}

func TestASecondMutationSendsNoPatch(t *testing.T) {
	d := newDesk(t, "twice")
	d.accepted(pod("first", expose("192.0.2.43:80")))
	stored := d.pod("first").Metadata
	d.succeeds("", "delete", "pod", "first", "--now")

	// An exported manifest: it already carries everything that the first mutation wrote.
	manifest := pod("second", notes{"pinhole.dev/expose": "192.0.2.43:80", effective: stored.Annotations[effective]})
	d.succeeds(strings.Replace(manifest, "metadata:\n", "metadata:\n  labels: {pinhole.dev/enabled: \"true\"}\n", 1), "create", "-f", "-")
	called := false
	for key, value := range d.audited("create", "second") {
		if strings.HasPrefix(key, "mutation.webhook.admission.k8s.io/") {
			called = called || strings.Contains(value, `"webhook":"mutate.pinhole.dev"`)
			if strings.Contains(value, `"mutated":true`) {
				t.Errorf("the pod was changed: %s", value)
			}
		}
		if strings.HasPrefix(key, "patch.webhook.admission.k8s.io/") {
			t.Errorf("a patch was sent: %s", value)
		}
	}
	if !called {
		t.Error("the webhook was not called")
	}
}

// A webhook of somebody else, called after ours, that labels every pod of one namespace.
func serveLabeller(d desk, namespace string) {
	certificate, err := d.cluster.Authority.ServingCertificate("127.0.0.1")
	if err != nil {
		d.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	patch := base64.StdEncoding.EncodeToString([]byte(`[{"op":"add","path":"/metadata/labels/later","value":"yes"}]`))
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			var review struct{ Request struct{ UID string } }
			if err := json.NewDecoder(request.Body).Decode(&review); err != nil {
				http.Error(writer, err.Error(), http.StatusBadRequest)
				return
			}
			writer.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(writer, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":`+
				`{"uid":%q,"allowed":true,"patchType":"JSONPatch","patch":%q}}`, review.Request.UID, patch)
		}),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	d.t.Cleanup(func() { _ = server.Close() })
	d.succeeds(fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: zz-later}
webhooks:
- name: later.example.com
  admissionReviewVersions: [v1]
  clientConfig: {url: "https://%s/", caBundle: %s}
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}
  sideEffects: None
`, listener.Addr(), base64.StdEncoding.EncodeToString(d.cluster.Authority.PEM), namespace), "apply", "-f", "-")
	d.t.Cleanup(func() { d.succeeds("", "delete", "mutatingwebhookconfiguration", "zz-later") })
}

func TestAReinvocationAfterALaterWebhookSendsNoPatch(t *testing.T) {
	d := newDesk(t, "reinvoked")
	serveLabeller(d, d.namespace)
	// The API server learns of the new configuration by a watch.
	attempt := 0
	d.eventually(func() error {
		attempt++
		d.succeeds(pod(fmt.Sprintf("web-%d", attempt), expose(fmt.Sprintf("192.0.2.44:%d:80", 1000+attempt))), "create", "-f", "-")
		if labels := d.pod(fmt.Sprintf("web-%d", attempt)).Metadata.Labels; labels["later"] != "yes" || labels[enabled] != "true" {
			return fmt.Errorf("the labels are %v", labels)
		}
		return nil
	})
	rounds := 0
	for key, value := range d.audited("create", fmt.Sprintf("web-%d", attempt)) {
		if strings.HasPrefix(key, "mutation.webhook.admission.k8s.io/") && strings.Contains(value, `"webhook":"mutate.pinhole.dev"`) {
			rounds++
			if mutated := strings.Contains(value, `"mutated":true`); mutated != strings.Contains(key, "round_0") {
				t.Errorf("%s: %s", key, value)
			}
		}
	}
	if rounds != 2 {
		t.Errorf("the webhook was called %d times, expected the call and its reinvocation", rounds)
	}
}
