#compdef orlop
# zsh completion for orlop. The program itself lists the candidates.
_orlop() {
  local program=orlop line word about found=1
  local -a plain open
  [[ $words[1] == */* ]] && program=${~words[1]}
  for line in "${(@f)$("$program" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}"; do
    word=${line%%$'\t'*}
    about=${${line#"$word"}#$'\t'}
    case $word in
    ('') ;;
    (:files) compset -P '--*='; _files; return ;;
    (:directories) compset -P '--*='; _files -/; return ;;
    (*[=@]) open+=("${word//:/\\:}:$about") ;;
    (*) plain+=("${word//:/\\:}:$about") ;;
    esac
  done
  (( $#plain )) && _describe orlop plain && found=0
  (( $#open )) && _describe orlop open -S '' && found=0
  return found
}
if [[ $funcstack[1] == _orlop ]]; then
  _orlop "$@"
else
  (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
  compdef _orlop orlop
fi
