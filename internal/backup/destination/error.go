package destination

import (
	"fmt"

	"orlop/internal/fault"
)

// A Remedy is the code of what may help against a failure, see fault.Remedy.
type Remedy string

// The remedies. The callers name the commands.
const (
	InitRepository    Remedy = "init_repository"    // make a repository, if none was ever made there
	ReplaceRepository Remedy = "replace_repository" // make a new one in the place of one that is gone for good
	GiveKey           Remedy = "give_key"           // give the key
	GiveCredentials   Remedy = "give_credentials"   // give the credentials for the bucket
	ListBackups       Remedy = "list_backups"       // look at the list of backups
	ChooseBackup      Remedy = "choose_backup"      // choose a backup of Volume by its ID
	VerifyRepository  Remedy = "verify_repository"  // verify the repository
	VerifyData        Remedy = "verify_data"        // verify it with all its data
)

// An Error is a failure, or a warning, with a remedy. Its text is about the failure only, and whoever shows it appends
// the remedy.
type Error struct {
	Destination Destination
	Remedy      Remedy
	Volume      string // name of the volume, with ChooseBackup
	Encrypted   bool   // whether the repository that is gone was encrypted, with ReplaceRepository

	err error
}

// Error returns the text without the remedy.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the failure, which has the kind.
func (e *Error) Unwrap() error { return e.err }

// FaultRemedy returns the remedy for fault.RemedyOf.
func (e *Error) FaultRemedy() fault.Remedy {
	return fault.Remedy{Code: string(e.Remedy), Destination: e.Destination.String(), Volume: e.Volume, Encrypted: e.Encrypted}
}

// A StateError is the warning that a host cannot keep in Dir what it should remember of destinations. Work continues, but a
// destination that was rolled back to an older state goes unnoticed.
type StateError struct {
	Dir string
	Err error
}

// Error returns the warning.
func (e *StateError) Error() string {
	return fmt.Sprintf("cannot remember anything in %s: %v; nobody would notice if the destination were set back to an older state", e.Dir, e.Err)
}

// Unwrap returns what went wrong.
func (e *StateError) Unwrap() error { return e.Err }
