package repo

import (
	"fmt"
	"strconv"
	"strings"

	"orlop/internal/fault"
)

// policyRules are the rules of a Policy that count backups, under their names in a text.
var policyRules = []struct {
	name  string
	field func(*Policy) *int
}{
	{"last", func(p *Policy) *int { return &p.Last }},
	{"hourly", func(p *Policy) *int { return &p.Hourly }},
	{"daily", func(p *Policy) *int { return &p.Daily }},
	{"weekly", func(p *Policy) *int { return &p.Weekly }},
	{"monthly", func(p *Policy) *int { return &p.Monthly }},
	{"yearly", func(p *Policy) *int { return &p.Yearly }},
}

// ruleWithin is the name of the rule that is a span.
const ruleWithin = "within"

// String returns the policy as ParsePolicy reads it, "" for the zero Policy.
func (p Policy) String() string {
	var rules []string
	for _, rule := range policyRules {
		if n := *rule.field(&p); n != 0 {
			rules = append(rules, fmt.Sprintf("%s:%d", rule.name, n))
		}
	}
	if p.Within != (Span{}) {
		rules = append(rules, ruleWithin+":"+p.Within.String())
	}
	return strings.Join(rules, ",")
}

// ParsePolicy reads rules with their values, as in "daily:7,weekly:4,within:30d". The empty text is the zero Policy. It
// fails with fault.ErrInvalid, naming the rule, and refuses a text that keeps nothing.
func ParsePolicy(text string) (Policy, error) {
	var p Policy
	if text == "" {
		return p, nil
	}
	given := map[string]bool{}
	for _, rule := range strings.Split(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(rule), ":")
		if given[name] {
			return Policy{}, fault.Errorf(fault.ErrInvalid, "retention policy %q: rule %q is given twice", text, name)
		}
		given[name] = true
		if err := p.set(name, value); err != nil {
			return Policy{}, fault.Errorf(fault.ErrInvalid, "retention policy %q: %w", text, err)
		}
	}
	if p.IsZero() {
		return Policy{}, fault.Errorf(fault.ErrInvalid, "retention policy %q: keeps nothing", text)
	}
	return p, nil
}

// set sets the rule of a name.
func (p *Policy) set(name, value string) (err error) {
	if name == ruleWithin {
		p.Within, err = ParseSpan(value)
		return err
	}
	for _, rule := range policyRules {
		if rule.name != name {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("rule %q needs a number, as in %s:7", name, name)
		}
		*rule.field(p) = int(n)
		return nil
	}
	var names []string
	for _, rule := range policyRules {
		names = append(names, rule.name)
	}
	return fmt.Errorf("unknown rule %q: use %s and %s, as in daily:7,weekly:4", name, strings.Join(names, ", "), ruleWithin)
}
