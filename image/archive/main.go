// Makes an image from a stage of a Dockerfile that starts from scratch, without docker: the stages it copies from are
// directories that were made before. The archive is one that `docker load` and containerd read. The same input gives the
// same bytes.
//
//	archive --dockerfile Dockerfile --stage webhook --from build=/tmp/binary:/binary --tag NAME:TAG out.tar
//
// `--from build=DIRECTORY:PATH` says that the other stage's PATH is in DIRECTORY. `--base DIRECTORY` starts from a root file
// system instead of from nothing.
package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

type pairs map[string]string

func (p pairs) String() string { return fmt.Sprint(map[string]string(p)) }

func (p pairs) Set(text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found {
		return fmt.Errorf("%q is not NAME=VALUE", text)
	}
	p[name] = value
	return nil
}

func run() error {
	sources, arguments := pairs{}, pairs{}
	dockerfile := flag.String("dockerfile", "Dockerfile", "the Dockerfile")
	stage := flag.String("stage", "", "the stage to make")
	tag := flag.String("tag", "", "the image's name and tag")
	base := flag.String("base", "", "a directory with what lies under everything")
	epoch := flag.Int64("epoch", 0, "the time of every file, in seconds since 1970")
	flag.Var(sources, "from", "STAGE=DIRECTORY:PATH, repeatable")
	flag.Var(arguments, "arg", "NAME=VALUE of an ARG, repeatable")
	flag.Parse()
	if flag.NArg() != 1 || *stage == "" || *tag == "" {
		return errors.New("needs --stage, --tag and the archive to write")
	}
	text, err := os.ReadFile(*dockerfile)
	if err != nil {
		return err
	}
	instructions, err := stageOf(string(text), *stage)
	if err != nil {
		return fmt.Errorf("%s: %w", *dockerfile, err)
	}
	image, err := interpret(instructions, sources, arguments, time.Unix(*epoch, 0).UTC(), *base)
	if err != nil {
		return fmt.Errorf("%s, stage %s: %w", *dockerfile, *stage, err)
	}
	return image.write(flag.Arg(0), *tag)
}

// The instructions of a stage, continuation lines joined, without comments.
func stageOf(dockerfile, stage string) ([]string, error) {
	joined := strings.ReplaceAll(dockerfile, "\\\n", " ")
	var found []string
	within := false
	for line := range strings.Lines(joined) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "FROM ") {
			words := strings.Fields(line)
			within = len(words) == 4 && words[3] == stage
			if within && words[1] != "scratch" {
				return nil, fmt.Errorf("stage %s starts from %s, not from scratch", stage, words[1])
			}
			continue
		}
		if within {
			found = append(found, line)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no stage %s", stage)
	}
	return found, nil
}

type file struct {
	header  tar.Header
	content string // the file that has its content
}

type image struct {
	created time.Time
	config  struct {
		User       string            `json:",omitempty"`
		Env        []string          `json:",omitempty"`
		Entrypoint []string          `json:",omitempty"`
		Labels     map[string]string `json:",omitempty"`
	}
	files map[string]file
}

func interpret(instructions []string, sources, arguments pairs, created time.Time, base string) (*image, error) {
	made := &image{created: created, files: map[string]file{}}
	made.config.Labels = map[string]string{}
	if base != "" {
		if err := made.addAll(base, "/"); err != nil {
			return nil, fmt.Errorf("--base: %w", err)
		}
	}
	for _, line := range instructions {
		instruction, rest, _ := strings.Cut(line, " ")
		rest = os.Expand(strings.TrimSpace(rest), func(name string) string { return arguments[name] })
		var err error
		switch instruction {
		case "ARG":
			if _, given := arguments[rest]; !given {
				err = errors.New("no --arg gives it a value")
			}
		case "LABEL":
			err = made.label(rest)
		case "ENV":
			made.config.Env = append(made.config.Env, rest)
		case "USER":
			made.config.User = rest
		case "ENTRYPOINT":
			err = json.Unmarshal([]byte(rest), &made.config.Entrypoint)
		case "COPY":
			err = made.copy(rest, sources)
		default:
			err = errors.New("this instruction is not known here")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
	}
	return made, nil
}

func (i *image) label(text string) error {
	for text != "" {
		name, rest, found := strings.Cut(text, `="`)
		value, after, closed := strings.Cut(rest, `"`)
		if !found || !closed {
			return errors.New(`labels are written NAME="VALUE"`)
		}
		i.config.Labels[strings.TrimSpace(name)] = value
		text = strings.TrimSpace(after)
	}
	return nil
}

func (i *image) copy(text string, sources pairs) error {
	words := strings.Fields(text)
	if len(words) != 3 || !strings.HasPrefix(words[0], "--from=") {
		return errors.New("only COPY --from=STAGE SOURCE DESTINATION is known here")
	}
	stage := strings.TrimPrefix(words[0], "--from=")
	directory, within, found := strings.Cut(sources[stage], ":")
	below, inside := strings.CutPrefix(words[1], within)
	if !found || !inside {
		return fmt.Errorf("no --from %s=DIRECTORY:PATH says where %s is", stage, words[1])
	}
	source, destination := filepath.Join(directory, below), words[2]
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return i.add(source, destination)
	}
	return i.addAll(source, destination)
}

func (i *image) addAll(source, destination string) error {
	return filepath.WalkDir(source, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == source {
			return err
		}
		return i.add(name, path.Join(destination, strings.TrimPrefix(name, source)))
	})
}

// Owned by root and with the image's time, whoever made it and when.
func (i *image) add(source, destination string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(source); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(path.Clean(destination), "/")
	i.files[name] = file{content: source, header: tar.Header{
		Typeflag: header.Typeflag, Name: name, Linkname: header.Linkname, Size: header.Size, Mode: header.Mode,
		ModTime: i.created, Format: tar.FormatPAX,
	}}
	return nil
}

func (i *image) write(archive, tag string) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": i.created, "config": i.config,
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history": []any{map[string]any{"created": i.created, "created_by": "image/archive"}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": digest(config) + ".json", "RepoTags": []string{tag}, "Layers": []string{digest(layer) + ".tar"},
	}})
	if err != nil {
		return err
	}
	var whole bytes.Buffer
	out := tar.NewWriter(&whole)
	for _, part := range []struct {
		name    string
		content []byte
	}{{digest(layer) + ".tar", layer}, {digest(config) + ".json", config}, {"manifest.json", manifest}} {
		header := tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.content)), ModTime: i.created}
		if err := cmp.Or(out.WriteHeader(&header), second(out.Write(part.content))); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.WriteFile(archive, whole.Bytes(), 0o644)
}

func (i *image) layer() ([]byte, error) {
	var layer bytes.Buffer
	out := tar.NewWriter(&layer)
	for name := range i.files {
		// Directories that nobody copied, down to the file.
		for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
			if _, present := i.files[parent]; !present {
				i.files[parent] = file{header: tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755, ModTime: i.created}}
			}
		}
	}
	names := make([]string, 0, len(i.files))
	for name := range i.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		entry := i.files[name]
		if entry.header.Typeflag == tar.TypeDir {
			entry.header.Name += "/"
		}
		if err := out.WriteHeader(&entry.header); err != nil {
			return nil, err
		}
		if entry.header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := os.Open(entry.content)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(out, content)
		content.Close()
		if err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}

func digest(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

func second(_ int, err error) error { return err }
