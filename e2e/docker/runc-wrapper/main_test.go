package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestTheSpecificationIsFoundHoweverTheRuntimeIsCalled(t *testing.T) {
	for _, each := range []struct{ arguments, file, inside string }{
		{"--root /run/runc create --bundle /run/pod --pid-file p name", "/run/pod/config.json", "process"},
		{"--log=l --root /run/runc run -b /run/pod name", "/run/pod/config.json", "process"},
		{"create --bundle=/run/pod name", "/run/pod/config.json", "process"},
		{"create name", "config.json", "process"},
		{"exec --process /tmp/process.json name", "/tmp/process.json", ""},
		{"exec --tty --process=/tmp/process.json name", "/tmp/process.json", ""},
		{"exec -p /tmp/process.json name", "/tmp/process.json", ""},
		// A process given by words has no capabilities of its own to take.
		{"exec name ls", "", ""},
		{"state name", "", ""},
		{"delete --force create", "", ""},
		{"--version", "", ""},
	} {
		file, inside := specification(strings.Fields(each.arguments))
		if file != each.file || inside != each.inside {
			t.Errorf("runc %s: the file is %q, the key %q; expected %q, %q", each.arguments, file, inside, each.file, each.inside)
		}
	}
}

const process = `{"args":["sleep"],"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]},"oomScoreAdj":-998}`
const lowered = `{"args":["sleep"],"capabilities":{"bounding":["CAP_CHOWN"],"effective":[]},"oomScoreAdj":0}`

func TestTheCapabilityAndTheNegativeScoreAreTakenAndNothingElse(t *testing.T) {
	for _, each := range []struct{ name, inside, before, after string }{
		{"a container", "process", `{"ociVersion":"1.1","process":` + process + `}`, `{"ociVersion":"1.1","process":` + lowered + `}`},
		{"a process in a container", "", process, lowered},
		{"a process that asks for nothing", "", `{"args":["sleep"]}`, `{"args":["sleep"]}`},
		{"a positive score", "", `{"oomScoreAdj":1000}`, `{"oomScoreAdj":1000}`},
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(file, []byte(each.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := rewrite(file, each.inside); err != nil {
			t.Errorf("%s: %v", each.name, err)
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !sameJSON(t, string(text), each.after) {
			t.Errorf("%s became\n%s\nexpected\n%s", each.name, text, each.after)
		}
	}
}

func TestASpecificationThatCannotBeReadIsToldAndLeftAsItIs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	for _, text := range []string{"", "{", `{"process":{"capabilities":[]}}`, `{"ociVersion":"1.1"}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := rewrite(file, "process"); err == nil {
			t.Errorf("%q was taken for a specification", text)
		}
		if left, err := os.ReadFile(file); err != nil || string(left) != text {
			t.Errorf("%q became %q (%v)", text, left, err)
		}
	}
	if err := rewrite(filepath.Join(t.TempDir(), "missing"), "process"); err == nil {
		t.Error("a missing file was read")
	}
}

func TestTheRuntimeBehindIsTheFirstOfThePathThatIsNotTheWrapper(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	put := func(name string, mode os.FileMode) string {
		if err := os.Mkdir(filepath.Join(directory, name), 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(directory, name, "runc")
		if err := os.WriteFile(file, nil, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	wrapper := filepath.Join(directory, "wrapper")
	if err := os.Mkdir(wrapper, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(wrapper, "runc")); err != nil {
		t.Fatal(err)
	}
	notAProgram, real := put("not-a-program", 0o600), put("real", 0o700)
	path := []string{filepath.Join(directory, "missing"), wrapper, filepath.Dir(notAProgram)}
	t.Setenv("PATH", strings.Join(path, ":"))
	if found, err := runtimeBehind(); err == nil {
		t.Errorf("%s was found", found)
	}
	t.Setenv("PATH", strings.Join(append(path, filepath.Dir(real)), ":"))
	if found, err := runtimeBehind(); err != nil || found != real {
		t.Errorf("%q was found (%v), expected %s", found, err, real)
	}
}

func sameJSON(t *testing.T, one, other string) bool {
	t.Helper()
	var left, right any
	if err := json.Unmarshal([]byte(one), &left); err != nil {
		t.Fatalf("%v: %s", err, one)
	}
	if err := json.Unmarshal([]byte(other), &right); err != nil {
		t.Fatalf("%v: %s", err, other)
	}
	return reflect.DeepEqual(left, right)
}
