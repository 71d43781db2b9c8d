# weights from and for other programs
en_test(test_safetensors test_safetensors.c LIBS en_trainer)

# where a network looks
en_test(test_cam test_cam.c LIBS en_trainer)

# The same logits from effnet and torchvision, on weights of either.
if(EN_PYTHON_WITH_TORCH AND NOT EN_SANITIZE)
  add_test(NAME test_exchange_torchvision COMMAND ${EN_PYTHON_WITH_TORCH} ${CMAKE_CURRENT_LIST_DIR}/peer/exchange_torchvision.py --effnet $<TARGET_FILE:effnet>)
  set_tests_properties(test_exchange_torchvision PROPERTIES TIMEOUT 900 ${EN_COMPUTES} SKIP_RETURN_CODE 77 ENVIRONMENT "${EN_MPI_TEST_ENV}")
endif()
