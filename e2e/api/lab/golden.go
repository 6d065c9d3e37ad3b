package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// What differs between two runs, and the word that stands for it in a golden file.
var volatile = []struct {
	pattern     *regexp.Regexp
	replacement string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "<time>"},
	{regexp.MustCompile(`\bfor \d+ s,`), "for <some> s,"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "<uid>"},
}

// A release before 1.34 shows a value's type where later ones show the value, or nothing.
var shownValue = regexp.MustCompile(`Invalid value: ("[^"]*"|null|\d+): `)

// inAnyRelease is a text as far as all releases of Kubernetes agree on it; with the pinned one, that is all of it.
func inAnyRelease(text string) string {
	if os.Getenv("K8S") == "" {
		return text
	}
	return shownValue.ReplaceAllString(text, "Invalid value: ")
}

// Golden compares a text that users read with testdata/NAME. With UPDATE_GOLDEN=1 it writes that file instead.
func Golden(name, got string) error {
	for _, each := range volatile {
		got = each.pattern.ReplaceAllString(got, each.replacement)
	}
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(got), 0o644)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w (UPDATE_GOLDEN=1 writes it)", err)
	}
	want = []byte(inAnyRelease(string(want)))
	if got = inAnyRelease(got); string(want) != got {
		return fmt.Errorf("e2e/api/%s differs; if the new text is better, write it with UPDATE_GOLDEN=1\n--- it says\n%s\n--- now\n%s",
			path, want, got)
	}
	return nil
}
