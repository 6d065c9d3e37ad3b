package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const dockerfile = `# a comment
FROM rust AS build
RUN make

FROM scratch AS agent
ARG VERSION
LABEL org.example.title="agent" \
      org.example.version="${VERSION}"
COPY --from=tools /tools/ /
COPY --from=build /binary/pinhole /usr/bin/pinhole
ENV PATH=/usr/bin
USER 65532:65532
ENTRYPOINT ["/usr/bin/pinhole"]

FROM scratch AS empty
`

// The directories of the other stages, as --from names them.
func stages(t *testing.T) (pairs, string) {
	t.Helper()
	root := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("binary/pinhole", "program", 0o755)
	write("tools/usr/sbin/iptables", "tool", 0o755)
	write("base/usr/lib/libc.so", "library", 0o644)
	write("base/usr/sbin/iptables", "an older tool", 0o755)
	if err := os.Symlink("usr/sbin", filepath.Join(root, "tools/sbin")); err != nil {
		t.Fatal(err)
	}
	return pairs{"build": root + "/binary:/binary", "tools": root + "/tools:/tools"}, filepath.Join(root, "base")
}

func madeOf(t *testing.T, sources pairs, base string) *image {
	t.Helper()
	instructions, err := stageOf(dockerfile, "agent")
	if err != nil {
		t.Fatal(err)
	}
	made, err := interpret(instructions, sources, pairs{"VERSION": "1.2.3"}, time.Unix(1000, 0).UTC(), base)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestAnImageHasWhatItsStageSays(t *testing.T) {
	sources, _ := stages(t)
	made := madeOf(t, sources, "")
	labels := map[string]string{"org.example.title": "agent", "org.example.version": "1.2.3"}
	if config := made.config; !reflect.DeepEqual(config.Labels, labels) || config.User != "65532:65532" ||
		!reflect.DeepEqual(config.Entrypoint, []string{"/usr/bin/pinhole"}) || !reflect.DeepEqual(config.Env, []string{"PATH=/usr/bin"}) {
		t.Errorf("the configuration is %+v", config)
	}
	layer, err := made.layer()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"sbin": "-> usr/sbin", "usr/": "", "usr/bin/": "", "usr/bin/pinhole": "program", "usr/sbin/": "", "usr/sbin/iptables": "tool",
	}
	if got := listed(t, layer); !reflect.DeepEqual(got, want) {
		t.Errorf("the layer has\n%v\nexpected\n%v", got, want)
	}
}

func TestABaseLiesUnderEverything(t *testing.T) {
	sources, base := stages(t)
	layer, err := madeOf(t, sources, base).layer()
	if err != nil {
		t.Fatal(err)
	}
	got := listed(t, layer)
	if got["usr/lib/libc.so"] != "library" || got["usr/sbin/iptables"] != "tool" {
		t.Errorf("the layer has %v", got)
	}
}

// listed tells what an archive has: the content of files, the target of links.
func listed(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != 1000 {
			t.Errorf("%s belongs to %d:%d since %s", header.Name, header.Uid, header.Gid, header.ModTime)
		}
		found[header.Name] = string(content)
		if header.Typeflag == tar.TypeSymlink {
			found[header.Name] = "-> " + header.Linkname
		}
	}
}

func TestTheSameInputGivesTheSameBytesAndAnArchiveThatRuntimesRead(t *testing.T) {
	var archives [][]byte
	for range 2 {
		sources, _ := stages(t)
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := madeOf(t, sources, "").write(file, "example.org/agent:1"); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, text)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of the same input differ")
	}
	parts := listed(t, archives[0])
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal([]byte(parts["manifest.json"]), &manifest); err != nil || len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("the manifest is %s (%v)", parts["manifest.json"], err)
	}
	var config struct {
		Rootfs struct {
			Layers []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal([]byte(parts[manifest[0].Config]), &config); err != nil {
		t.Fatal(err)
	}
	layer := digest([]byte(parts[manifest[0].Layers[0]]))
	if manifest[0].RepoTags[0] != "example.org/agent:1" || !reflect.DeepEqual(config.Rootfs.Layers, []string{"sha256:" + layer}) {
		t.Errorf("tag %v, layers %v, expected sha256:%s", manifest[0].RepoTags, config.Rootfs.Layers, layer)
	}
}

func TestWhatCannotBeDoneIsToldByTheLine(t *testing.T) {
	sources, _ := stages(t)
	for _, each := range []struct{ text, says string }{
		{"RUN make", "RUN make: this instruction is not known here"},
		{"ARG OTHER", "no --arg gives it a value"},
		{"COPY file /", "only COPY --from=STAGE SOURCE DESTINATION"},
		{"COPY --from=build /elsewhere/file /", "no --from build=DIRECTORY:PATH says where /elsewhere/file is"},
		{"COPY --from=build /binary/missing /", "no such file"},
		{"LABEL title=agent", `labels are written NAME="VALUE"`},
		{"ENTRYPOINT /pinhole", "ENTRYPOINT /pinhole"},
	} {
		_, err := interpret([]string{each.text}, sources, pairs{}, time.Time{}, "")
		if err == nil || !strings.Contains(err.Error(), each.says) {
			t.Errorf("%s: %v, expected %q", each.text, err, each.says)
		}
	}
	for _, stage := range []string{"build", "empty", "missing"} {
		if found, err := stageOf(dockerfile, stage); err == nil {
			t.Errorf("stage %s has %v", stage, found)
		}
	}
}
