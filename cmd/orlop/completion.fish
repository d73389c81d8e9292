# fish completion for orlop. The program itself lists the candidates.
function __orlop_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program orlop
    if string match -q '*/*' -- $words[1]
        set program (string replace -r '^~' $HOME -- $words[1])
    end
    set -e words[1]
    for line in ($program __complete $words (string trim -c '"\'' -- "$current") 2>/dev/null)
        switch $line
            case ':files' ':directories'
                set -l flag (string match -r '^--[^=]*=' -- $current)
                set -l path (string replace -r '^--[^=]*=' '' -- "$current")
                set -l list __fish_complete_path
                test $line = ':directories'; and set list __fish_complete_directories
                for found in ($list $path)
                    echo "$flag$found"
                end
            case '*'
                echo $line
        end
    end
end
complete -c orlop -f -a '(__orlop_complete)'
