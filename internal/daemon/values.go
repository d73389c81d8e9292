package daemon

import (
	"math"
	"math/big"
	"regexp"
	"strings"

	"orlop/internal/fault"
	"orlop/internal/volume"
)

// nameRule is what a name of a volume may be; nameHelp says it in messages.
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

const nameHelp = "1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit"

// ValidName tells whether name may be the name of a volume, or of a pool.
func ValidName(name string) bool { return nameRule.MatchString(name) }

// checkName fails with fault.ErrInvalid unless name may be a volume's name. Docker checks no names, so every verb
// does.
func checkName(name string) error {
	if !ValidName(name) {
		return fault.Errorf(fault.ErrInvalid, "volume name %q: not allowed: use %s", name, nameHelp)
	}
	return nil
}

var sizeRule = regexp.MustCompile(`^([0-9]{1,20}(?:\.[0-9]{1,20})?)(?:([KkMmGgTt])(?:[iI][bB])?)?$`)

const sizeHelp = "use bytes or a 1024-based unit, as in 512M, 10G, 10GiB or 1.5T"

// ParseSize reads a size in bytes: "512M", "10GiB", "1.5T", "1073741824". Units are 1024-based. Zero, negative
// sizes, overflow of an int64, parts of bytes and anything around the number are fault.ErrInvalid.
func ParseSize(text string) (int64, error) {
	parts := sizeRule.FindStringSubmatch(text)
	if parts == nil {
		return 0, fault.Errorf(fault.ErrInvalid, "size %q: not a size: %s", text, sizeHelp)
	}
	number, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, fault.Errorf(fault.ErrInvalid, "size %q: not a size: %s", text, sizeHelp)
	}
	if parts[2] == "" && strings.Contains(parts[1], ".") {
		return 0, fault.Errorf(fault.ErrInvalid, "size %q: parts of a byte: %s", text, sizeHelp)
	}
	shift := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.ToUpper(parts[2])]
	number.Mul(number, new(big.Rat).SetInt64(1<<shift))
	size := new(big.Int).Quo(number.Num(), number.Denom())
	if size.Sign() <= 0 {
		return 0, fault.Errorf(fault.ErrInvalid, "size %q: must be more than zero: %s", text, sizeHelp)
	}
	if !size.IsInt64() {
		return 0, fault.Errorf(fault.ErrInvalid, "size %q: more than %d bytes", text, int64(math.MaxInt64))
	}
	return size.Int64(), nil
}

// parseVolumeSize is ParseSize for a volume, which has whole blocks: the size is rounded up to them.
func parseVolumeSize(text string) (int64, error) {
	size, err := ParseSize(text)
	return volume.RoundUp(size), err
}

var labelRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_./-]{0,127}$`)

const (
	maxLabels     = 64
	maxLabelValue = 1024 // bytes
)

// parseLabel reads "key=value".
func parseLabel(text string) (key, value string, err error) {
	key, value, found := strings.Cut(text, "=")
	if !found {
		return "", "", fault.Errorf(fault.ErrInvalid, "label %q: must be key=value", text)
	}
	return key, value, checkLabel(key, value)
}

func checkLabel(key, value string) error {
	if !labelRule.MatchString(key) {
		return fault.Errorf(fault.ErrInvalid, "label key %q: not allowed: use 1 to 128 letters, digits, '_', '.', '/' or '-', beginning with a letter or digit", key)
	}
	if len(value) > maxLabelValue {
		return fault.Errorf(fault.ErrInvalid, "label %q: value of %d bytes: at most %d are allowed", key, len(value), maxLabelValue)
	}
	if strings.ToValidUTF8(value, "") != value || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fault.Errorf(fault.ErrInvalid, "label %q: value %q: must be UTF-8 text without control characters", key, value)
	}
	return nil
}

func checkLabelCount(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fault.Errorf(fault.ErrInvalid, "%d labels: at most %d are allowed", len(labels), maxLabels)
	}
	return nil
}

const maxCommand = 4096 // bytes

// parseCommand splits a command line into arguments, as a shell would: at blanks, with quotes and backslashes. Within
// double quotes a backslash stands for itself, except before one of "\$`. Nothing is expanded, for no shell runs it. It fails with fault.ErrInvalid if there is no command or a quote is open.
func parseCommand(key, line string) ([]string, error) {
	invalid := func(why string) error {
		return fault.Errorf(fault.ErrInvalid, "%s %q: %s", key, line, why)
	}
	if len(line) > maxCommand || strings.ContainsAny(line, "\x00\n") {
		return nil, invalid("must be one line of at most 4096 bytes")
	}
	var argv []string
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("\"\\$`", r) {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			inWord, escaped = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			inWord, quote = true, r
		case r == ' ' || r == '\t':
			if inWord {
				argv, inWord = append(argv, word.String()), false
				word.Reset()
			}
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, invalid("a quote or backslash at its end is open")
	}
	if inWord {
		argv = append(argv, word.String())
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, invalid("names no command")
	}
	return argv, nil
}
