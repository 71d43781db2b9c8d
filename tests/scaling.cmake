# `effnet scaling`: its model, the files it reads, and the command from outside.
en_test(test_scaling_cluster test_scaling_cluster.c LIBS en_trainer)
target_compile_definitions(test_scaling_cluster PRIVATE EN_CLUSTERS="${CMAKE_SOURCE_DIR}/launch/clusters")
en_test(test_scaling_model test_scaling_model.c LIBS en_trainer)
en_test(test_scaling_measure test_scaling_measure.c LIBS en_trainer)
target_compile_definitions(test_scaling_model PRIVATE EN_CLUSTERS="${CMAKE_SOURCE_DIR}/launch/clusters")

set(h200 "--cluster '${CMAKE_SOURCE_DIR}/launch/clusters/h200-ndr.txt'")
en_cli_test(scaling_predicts "\"$0\" scaling --predict --model b0 ${h200} --gpus 8,64 --bn-group node" PASS_REGULAR_EXPRESSION
            "^Predicted, not measured: efficientnet_b0 at 224 px.*\n       8      1        256 .*\n      64      8       2048 .*8 GPUs, 256 images\n")
en_cli_test(scaling_predicts_json "\"$0\" scaling --predict --model b0 ${h200} --gpus 8 --strong --global-batch 512 --micro-batch 16 --json" PASS_REGULAR_EXPRESSION
            "^{\"predicted\":true,\"model\":\"efficientnet_b0\",.*\"ranks\":8,.*\"passes\":4,.*\"advice\":\\[.*\\]}\n$")
en_cli_test(scaling_says_the_same_twice "a=$(\"$0\" scaling --predict ${h200}) && b=$(\"$0\" scaling --predict ${h200}) && test -n \"$a\" && test \"$a\" = \"$b\"")
en_cli_test(scaling_wants_a_machine "\"$0\" scaling --predict 2>&1; test $? -eq 2 || echo wrong code" PASS_REGULAR_EXPRESSION "--cluster FILE. launch/clusters"
            FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(scaling_wants_to_know_what "\"$0\" scaling ${h200} 2>&1; test $? -eq 2 || echo wrong code" PASS_REGULAR_EXPRESSION "say --ranks 1,2,4 to measure, or --predict"
            FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(scaling_counts_are_checked "\"$0\" scaling --predict ${h200} --gpus 8,,64 2>&1; test $? -eq 2 || echo wrong code" PASS_REGULAR_EXPRESSION
            "--gpus '8,,64': use whole numbers" FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(scaling_says_what_does_not_fit "\"$0\" scaling --predict --model l2 ${h200} --gpus 8 --micro-batch 4; \"$0\" scaling --predict --model l2 ${h200} --gpus 8 --micro-batch 64"
            PASS_REGULAR_EXPRESSION "of 141 GB a rank\n.*of 141 GB a rank: it does NOT fit, choose a smaller --micro-batch\n")
en_cli_test(scaling_writes_a_table_and_figures "d=$(mktemp -d) && \"$0\" scaling --predict ${h200} --folder \"$d/new\" > \"$d/log\" && head -n 2 \"$d/new/predicted.csv\" && \
            wc -l < \"$d/new/predicted.csv\" && grep -c '</svg>' \"$d/new/predicted-throughput.svg\" \"$d/new/predicted-step.svg\"; rm -r \"$d\""
            PASS_REGULAR_EXPRESSION "^# predicted, not measured.*\nranks,.*\n7\n.*throughput.svg:1\n.*step.svg:1\n$")
en_cli_test(scaling_takes_measured_passes "d=$(mktemp -d) && cpu='${CMAKE_SOURCE_DIR}/launch/clusters/cpu-2-cores.txt' && \
            \"$0\" bench passes --width 0.25 --depth 0.5 --image-size 32 --micro-batch 2 --bandwidth 10 --tflops 0.1 --steps 2 --json > \"$d/t\" && \
            \"$0\" scaling --predict --width 0.25 --depth 0.5 --image-size 32 --cluster \"$cpu\" --gpus 2 --times \"$d/t\" && \
            \"$0\" scaling --predict --width 0.25 --depth 0.5 --image-size 64 --cluster \"$cpu\" --times \"$d/t\" 2>&1 || echo code $?; rm -r \"$d\""
            PASS_REGULAR_EXPRESSION "passes measured on cpu with 2 images.*was measured of [^\n]* at 32 px and this is [^\n]* at 64 px.*code 2\n$" TIMEOUT 600)         # a busy machine measures slowly
