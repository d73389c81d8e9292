# bash completion for orlop. The program itself lists the candidates.
_orlop() {
  local line=${COMP_LINE:0:COMP_POINT} words=() program=orlop word blank current known quoted='' _about i
  # bash also splits words at '=', ':' and '@': join those that no blank separates.
  for ((i = 0; i <= COMP_CWORD; i++)); do
    blank=${line%%[![:space:]]*}
    line=${line#"$blank"}
    word=${COMP_WORDS[i]}
    ((i < COMP_CWORD)) || word=$line
    line=${line#"$word"}
    case $word in [\"\']*) quoted=yes ;; *) [[ -z $blank ]] || quoted='' ;; esac
    word=${word//[\\\"\']/}
    if [[ $i == 0 || -n $blank ]]; then words+=("$word"); else words[${#words[@]}-1]+=$word; fi
  done
  case ${words[0]} in */*) program=${words[0]/#\~/$HOME} ;; esac
  current=${words[${#words[@]}-1]}
  # bash replaces only the text after the last separator. That text includes a separating '@' while host names are completed.
  known=${current%"${current##*["$COMP_WORDBREAKS"]}"}
  if [[ $known == *@ ]] && shopt -q hostcomplete; then known=${known%@}; fi
  [[ -z $quoted ]] || known=
  COMPREPLY=()
  while IFS=$'\t' read -r word _about; do
    case $word in
    :files) compopt -o default ;;
    :directories) compopt -o dirnames ;;
    *)
      case $word in *[=@]) compopt -o nospace ;; esac
      [[ -n $quoted ]] || printf -v word %q "$word"
      COMPREPLY+=("${word#"$known"}")
      ;;
    esac
  done < <("$program" __complete "${words[@]:1}" 2> /dev/null)
}
complete -F _orlop orlop
