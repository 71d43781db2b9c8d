en_test(test_model test_model.c LIBS en_trainer)
target_compile_definitions(test_model PRIVATE EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")

en_test(test_model_family test_model_family.c LIBS en_trainer)
target_compile_definitions(test_model_family PRIVATE EN_TEST_DATA="${EN_TEST_DATA}")

en_test(test_options test_options.c LIBS en_trainer)
en_test(test_recipes test_recipes.c LIBS en_trainer)
en_test(test_freeze test_freeze.c LIBS en_trainer)
en_test(test_input test_input.c LIBS en_trainer)
en_test(test_doctor test_doctor.c LIBS en_trainer)
en_test(test_rollcall test_rollcall.c LIBS en_trainer)
en_test(test_plot test_plot.c LIBS en_trainer)
en_test(test_search test_search.c LIBS en_trainer)
en_test(test_bench_comm test_bench_comm.c LIBS en_trainer)
foreach(ranks 2 3)
  en_mpi_test(test_bench_comm_${ranks}_ranks ${ranks} $<TARGET_FILE:test_bench_comm>)
endforeach()
en_test(test_account test_account.c LIBS en_trainer)

# The program from outside: what it prints and the code it exits with.
function(en_cli_test name script)
  add_test(NAME cli_${name} COMMAND sh -c "${script}" $<TARGET_FILE:effnet>)       # the program is $0
  set_tests_properties(cli_${name} PROPERTIES TIMEOUT 60 ENVIRONMENT "${EN_MPI_TEST_ENV}" ${ARGN})
endfunction()

en_cli_test(version "\"$0\" --version" PASS_REGULAR_EXPRESSION "^effnet ${PROJECT_VERSION}\n$")
en_cli_test(no_command_is_wrong_usage "\"$0\"; test $? -eq 2")
en_cli_test(misspelt_command_names_the_nearest "\"$0\" trian 2>&1; test $? -eq 2 || echo wrong code" PASS_REGULAR_EXPRESSION "did you mean .effnet train"
            FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(misspelt_option_names_the_nearest "\"$0\" train --global-bach 8 2>&1; test $? -eq 2 || echo wrong code"
            PASS_REGULAR_EXPRESSION "^effnet: wrong usage: [^\n]*did you mean --global-batch.\n$" FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(help_of_a_command_either_way "test \"$(\"$0\" help train)\" = \"$(\"$0\" train --help)\"")
en_cli_test(describe_json "\"$0\" describe efficientnet-b0 --json" PASS_REGULAR_EXPRESSION
  "^{\"model\": \"efficientnet_b0\", \"resolution\": 224, \"params_trainable\": 5288548, \"params_bn_stats\": 42016, \"macs\": 385814752}\n$")
en_cli_test(describe_scales "\"$0\" describe mobilenetv2 --width 1.2 --depth 1.4 --resolution 1.3 --json; \"$0\" describe r50 --phi 2 --alpha 2 --beta 1 --gamma 1 --json"
            PASS_REGULAR_EXPRESSION
  "^{\"model\": \"mobilenetv2\", \"resolution\": 291, \"params_trainable\": 7987552, \"params_bn_stats\": 74400, \"macs\": 1442045088}
{\"model\": \"resnet50\", \"resolution\": 224, \"params_trainable\": 89824040, \"params_bn_stats\": 189056, \"macs\": 14570749952}\n$")
en_cli_test(two_sizes_of_images_are_refused "\"$0\" describe b0 --image-size 64 --resolution 2 2>&1; test $? -eq 2 || echo wrong code"
            PASS_REGULAR_EXPRESSION "leave one out\n$" FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(a_base_without_its_power_is_refused "\"$0\" describe b0 --alpha 1.3 2>&1; test $? -eq 2 || echo wrong code"
            PASS_REGULAR_EXPRESSION "give --phi too" FAIL_REGULAR_EXPRESSION "wrong code")
en_cli_test(describe_lines_add_up "models=$(\"$0\" describe --list | awk 'NF == 7 && $3 > 0 { print $1 }'); test $(echo $models | wc -w) -ge 22 && \
            for m in $models; do \"$0\" describe $m > /dev/null && \"$0\" describe $m --phi 1 --gamma 1.1 --memory > /dev/null || exit 1; done")
en_cli_test(a_full_disk_is_an_error "\"$0\" describe --list > /dev/full; test $? -eq 1")
en_cli_test(synth_refuses_a_folder_in_use "\"$0\" synth . 2>&1; test $? -eq 2")
en_cli_test(doctor "\"$0\" doctor --json" PASS_REGULAR_EXPRESSION "\"ranks\": 1, .*\"findings\": \\[")
en_cli_test(doctor_sees_both_ranks "'${MPIEXEC_EXECUTABLE}' -n 2 \"$0\" doctor" PASS_REGULAR_EXPRESSION "2 ranks on 1 host.*rank 0 .*rank 1 ")
en_cli_test(threads_are_as_openmp_is_told "OMP_NUM_THREADS=3,2 \"$0\" bench train --width 0.25 --depth 0.5 --image-size 32 --micro-batch 2 --steps 1"
            PASS_REGULAR_EXPRESSION "3 threads")
en_cli_test(one_rank_speaks_for_a_wrong_command_line
            "'${MPIEXEC_EXECUTABLE}' -n 3 \"$0\" train --global-bach 8 2>&1 | grep -c 'wrong usage'" PASS_REGULAR_EXPRESSION "^1\n$")
find_program(TASKSET taskset)
if(TASKSET)
  en_cli_test(doctor_tells_ranks_on_one_processor "'${MPIEXEC_EXECUTABLE}' -n 2 '${TASKSET}' -c 0 \"$0\" doctor"
              PASS_REGULAR_EXPRESSION "ranks 0, 1 share 1 processor")
endif()
en_test(test_schedule_plan test_schedule_plan.c LIBS en_trainer)
en_test(test_stages test_stages.c LIBS en_trainer)
