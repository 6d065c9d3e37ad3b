package api

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const repository = "../.."

// When somebody got a port, and through which pod: the controllers may be quicker than the next refusal.
var since = regexp.MustCompile(`\((pod \S+, created [^)]*, not on a node yet|since [^)]*)\)`)

// What the README shows below each `kubectl apply`, without the lines that explain it.
func shownInReadme(t *testing.T) map[string]string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	_, rest, found := strings.Cut(string(readme), "\n$ kubectl apply -f ")
	for found {
		var block string
		block, rest, found = strings.Cut(rest, "\n$ kubectl apply -f ")
		path, output, _ := strings.Cut(block, "\n")
		output, _, _ = strings.Cut(output, "\n\n")
		for line := range strings.Lines(strings.TrimRight(output, "\n") + "\n") {
			if !strings.HasPrefix(line, "  ") {
				shown[path] += line
			}
		}
	}
	return shown
}

func TestTheExamplesAreAnsweredAsTheReadmeShows(t *testing.T) {
	d := newDesk(t, "mail")
	d.another("marketing")
	d.eventually(func() error {
		path := "/api/v1/namespaces/default/serviceaccounts/default"
		return d.cluster.Do(context.Background(), 0, http.MethodGet, path, nil, nil)
	})
	shown := shownInReadme(t)
	granted, _ := filepath.Glob(filepath.Join(repository, "examples/*.yaml"))
	refused, _ := filepath.Glob(filepath.Join(repository, "examples/refused/*.yaml"))
	if len(granted) < 5 || len(refused) < 3 || len(shown) < 8 {
		t.Fatalf("examples are missing: %d granted, %d refused, %d in the README", len(granted), len(refused), len(shown))
	}
	for _, path := range append(granted, refused...) {
		result, err := d.cluster.Kubectl("", "apply", "-f", path)
		if err != nil {
			t.Fatal(err)
		}
		said := result.Stdout + result.Stderr
		if mustPass := !strings.Contains(path, "refused"); result.Succeeded != mustPass {
			t.Errorf("kubectl apply -f %s: success is %v, and must be %v:\n%s", path, result.Succeeded, mustPass, said)
		}
		name, _ := filepath.Rel(repository, path)
		want, isShown := shown[name]
		said = since.ReplaceAllString(strings.ReplaceAll(said, " \n", "\n"), "(since then)")
		if want = since.ReplaceAllString(want, "(since then)"); isShown && said != want {
			t.Errorf("kubectl apply -f %s\n--- the README shows\n%s--- kubectl prints\n%s", name, want, said)
		}
	}
}
