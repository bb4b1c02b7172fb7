# Runs PROGRAM for SECONDS on a copy of CORPUS in WORK/<NAME>/corpus, which keeps growing from run to run.
# A crash leaves its input in WORK/<NAME>/; put it into CORPUS with the fix.
set(work ${WORK}/${NAME})
file(MAKE_DIRECTORY ${work}/corpus)
if(EXISTS ${CORPUS})
  file(COPY ${CORPUS}/ DESTINATION ${work}/corpus)
endif()
set(dict)
if(EXISTS ${DICT})
  set(dict -dict=${DICT})
endif()
execute_process(
  COMMAND ${PROGRAM} -max_total_time=${SECONDS} -timeout=10 -rss_limit_mb=3072 -print_final_stats=1
    -artifact_prefix=${work}/ ${dict} ${work}/corpus
  RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${NAME}: the fuzzer stopped with ${status}; its input lies in ${work}")
endif()
