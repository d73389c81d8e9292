package daemon

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"orlop/internal/fault"
)

// dockerOptions turns the options of "docker volume create" into those of Create. It fails with fault.ErrInvalid on what
// only the command line may set, and on a mode that is no octal number beyond doubt.
func (d *Daemon) dockerOptions(name string, options map[string]string) ([]Option, error) {
	if _, asked := options["help"]; asked {
		return nil, fault.Errorf(fault.ErrInvalid, "%s", d.optionHelp())
	}
	list := make([]Option, 0, len(options))
	for key, value := range options {
		if slices.ContainsFunc(OptionKinds, func(k OptionKind) bool { return k.Key == key && k.FlagOnly }) {
			return nil, fault.Errorf(fault.ErrInvalid, "option %q: not for docker: use 'orlop set %s --%s CMD'", key, name, key)
		}
		if key == "mode" {
			if err := checkDockerMode(value); err != nil {
				return nil, err
			}
		}
		list = append(list, Option{key, value})
	}
	return list, nil
}

// checkDockerMode refuses numbers without a leading 0. YAML reads 0770 as the number 504 and Compose passes that on, which
// as octal digits is a mode too, and another one. chmod(1) and "orlop create --mode" need no leading 0.
func checkDockerMode(text string) error {
	if strings.HasPrefix(text, "0") {
		return nil
	}
	number, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil //nolint:nilerr // no number at all is refused where modes are read
	}
	message := fmt.Sprintf("mode %q: must be octal with a leading 0", text)
	if octal, err := strconv.ParseUint(text, 8, 32); err == nil && octal <= 0o7777 {
		message += ", as in 0" + text
	}
	if number <= 0o7777 {
		message += fmt.Sprintf("; if a Compose file says 0%o, put it in quotes: mode: \"0%o\"", number, number)
	}
	return fault.Errorf(fault.ErrInvalid, "%s", message)
}

// optionHelp is the table of Docker's options, with their defaults.
func (d *Daemon) optionHelp() string {
	defaults := map[string]string{
		"size": Bytes(d.defaultSize), "fs": d.defaultFS, "uid": "0", "gid": "0", "mode": "0755", "protect": "false",
		"mount-option": "nosuid,nodev,discard",
	}
	if len(d.pools) > 0 {
		defaults["pool"] = d.pools[0].Name
	}
	var b strings.Builder
	b.WriteString("options of volumes, as in -o size=10G:")
	for _, kind := range OptionKinds {
		key, help := kind.Key, kind.Help
		if key == "label" {
			key, help = labelPrefix+"<key>", "label"
		}
		if kind.FlagOnly {
			continue
		}
		fmt.Fprintf(&b, "\n  %-13s %s", key, help)
		if value := defaults[kind.Key]; value != "" {
			fmt.Fprintf(&b, " (default %s)", value)
		}
	}
	return b.String()
}
