package api

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The predecessors' annotations, which every condition names whether or not reading them is enabled.
var predecessorsKeys = []string{
	"bln.space/podnat", "k8s.aliyun.com/pod-dnat", "k8s.aliyun.com/pod-dnat-expose-port",
	"k8s.aliyun.com/pod-dnat-expose-protocol", "k8s.aliyun.com/pod-dnat-fixed",
}

func TestEveryConditionNamesTheSameAnnotations(t *testing.T) {
	t.Parallel()
	condition := regexp.MustCompile(`(?s)- name: (uses-nat|nat-annotations-changed)\n\s+expression: >-\n(.*?)(?:\n\s+#|\n\s+- name:|\z)`)
	quoted := regexp.MustCompile(`'([a-z0-9.]+\.[a-z]+/[a-z-]*)'`)
	seen := 0
	manifests, err := os.ReadFile(selfManaged)
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(manifests), "\n---\n") {
		for _, match := range condition.FindAllStringSubmatch(document, -1) {
			seen++
			var keys []string
			for _, key := range quoted.FindAllStringSubmatch(match[2], -1) {
				if !slices.Contains(keys, key[1]) {
					keys = append(keys, key[1])
				}
			}
			want := append([]string{"pinhole.dev/"}, predecessorsKeys...)
			if match[1] == "nat-annotations-changed" {
				want = append([]string{"pinhole.dev/nat", "pinhole.dev/expose", "pinhole.dev/handover", "pinhole.dev/udp-handover", "pinhole.dev/sharing", "pinhole.dev/suspended"}, predecessorsKeys...)
				if strings.Contains(document, "\nkind: MutatingWebhookConfiguration\n") {
					// What only Pinhole may write is corrected, too.
					want = append(want, effective, "pinhole.dev/")
				}
			}
			if !slices.Equal(slices.Sorted(slices.Values(keys)), slices.Sorted(slices.Values(want))) {
				t.Errorf("condition %s names\n%v\nexpected\n%v\nin\n%s", match[1], keys, want, document)
			}
		}
	}
	if seen != 6 {
		t.Errorf("%d conditions were found, expected 6", seen)
	}
}
