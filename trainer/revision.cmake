# Writes OUT with EN_REVISION, what git calls the sources in SOURCE ("" without git), and touches it only when that changes.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND git --no-optional-locks -C ${SOURCE} describe --always --dirty --abbrev=12 OUTPUT_VARIABLE revision
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(revision "")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define EN_REVISION \"@revision@\"\n" @ONLY)
